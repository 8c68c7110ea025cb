// What a run is and where it stands, on one screen.

import { post } from "../lib/api.js";
import { Chart } from "../charts/charts.js";
import { fill, h, throttle } from "../lib/dom.js";
import { ago, bytes, count, duration, moment, number, percent, plain, whole } from "../lib/format.js";
import { link } from "../lib/router.js";
import { envelope, fetchSeries, points } from "../charts/series.js";
import { empty, warning } from "../lib/states.js";
import { colour } from "../lib/theme.js";
import { predictedPanel } from "./predicted.js";
import { profilePanel } from "./profiled.js";

const QUIET = ["data", "wandb"];
const POWER = /power_?watts$/i;
const MOST_GPUS = 64;

export class Overview {
  constructor(place, view) {
    this.view = view;
    this.tiles = h("dl.tiles");
    this.progress = h("div.progress-line");
    this.timeline = h("ol.timeline", { tabindex: "0", "aria-label": "Events" });
    this.facts = h("dl.facts");
    this.alert = h("button.ghost.tiny", { type: "button", onclick: () => this.testAlerts() }, "Test its alerts");
    this.sent = h("div", { role: "status" });
    this.charts = [];
    this.curves = h("div");
    this.predicted = h("div");
    fill(
      place,
      this.progress,
      this.tiles,
      this.curves,
      this.predicted,
      h(
        "div.columns",
        {},
        h(
          "section.panel",
          { "aria-labelledby": "happened" },
          h("div.head", {}, h("h2", { id: "happened" }, "What happened"), h("div.grow"), this.alert),
          this.sent,
          this.timeline,
        ),
        h(
          "section.panel",
          { "aria-labelledby": "about" },
          h("div.head", {}, h("h2", { id: "about" }, "About")),
          this.facts,
        ),
      ),
    );
    this.redraw = throttle(() => {
      this.readCurves();
      this.latest();
    }, 4000);
    this.told();
    this.eventsChanged();
    this.latest();
  }

  // Charts of the metrics that there are; a young run has none, and its first evaluation comes late.
  drawCharts() {
    const names = Object.values(this.view.run.metrics ?? {}).flat();
    const evaluation =
      names.find((name) => name === "eval/validation/loss") ?? names.find((name) => /^eval\/.*\/loss$/.test(name));
    const wanted = [
      names.includes("train/loss") && ["Loss", ["train/loss", evaluation].filter(Boolean)],
      names.includes("perf/tokens_per_second") && ["Tokens per second", ["perf/tokens_per_second"]],
    ].filter(Boolean);
    const said = JSON.stringify(wanted);
    if (said === this.said) return;
    this.said = said;
    for (const chart of this.charts) chart.destroy();
    this.charts = wanted.map(([title, metrics]) => this.chart(title, metrics));
    fill(
      this.curves,
      this.charts.length
        ? h(
            "div.chart-grid.two",
            {},
            this.charts.map((chart) => chart.element),
          )
        : empty(
            "No steps yet",
            "Curves appear with the first step; the logs say what the run is doing.",
            h("a.button.small", { href: link(["run", this.view.id], { tab: "logs" }) }, "Show the logs"),
          ),
    );
    this.readCurves();
  }

  chart(title, metrics) {
    const chart = new Chart({
      title,
      height: 220,
      draw: () => this.figure(chart, metrics),
      rows: () => rowsOf(chart.series ?? []),
      describe: () => `last ${number(chart.series?.[0]?.y.at(-1))}`,
    });
    chart.metrics = metrics;
    return chart;
  }

  async readCurves() {
    if (!this.charts.length) return;
    const width = this.charts[0].plot.clientWidth;
    const metrics = [...new Set(this.charts.flatMap((chart) => chart.metrics))];
    try {
      const { found } = await fetchSeries({
        runs: [this.view.id],
        metrics,
        x: "step",
        smooth: 0.6,
        count: points(width, 1),
      });
      this.cursor = found.get(metrics[0])?.[0]?.cursor;
      this.view.stream?.restart();
      for (const chart of this.charts) {
        chart.series = chart.metrics.flatMap((name) => found.get(name));
        await chart.render();
      }
    } catch (error) {
      for (const chart of this.charts) chart.say(error.message);
    }
  }

  figure(chart, metrics) {
    const colours = [colour("accent"), colour("second")];
    const traces = (chart.series ?? []).flatMap((series) => {
      const ink = colours[metrics.indexOf(series.metric)];
      const line = {
        type: "scatter",
        mode: series.x.length <= 40 ? "lines+markers" : "lines",
        marker: { size: 4, color: ink },
      };
      const raw = series.x.length > 40 ? envelope(series) : null;
      return [
        ...(raw
          ? [
              {
                ...line,
                mode: "lines",
                x: raw.x,
                y: raw.y,
                line: { color: ink, width: 1 },
                opacity: 0.25,
                hoverinfo: "skip",
                showlegend: false,
              },
            ]
          : []),
        {
          ...line,
          x: series.x,
          y: series.x.length <= 40 ? series.max : series.y,
          line: { color: ink, width: 1.7 },
          name: series.metric,
          hovertemplate: "%{y:.5~g}<extra>%{fullData.name}</extra>",
        },
      ];
    });
    return {
      traces,
      layout: {
        hovermode: "x unified",
        showlegend: metrics.length > 1,
        xaxis: { title: { text: "Step" }, fixedrange: true },
        yaxis: { fixedrange: true },
        legend: { x: 1, xanchor: "right", y: 1, bgcolor: "rgba(0,0,0,0)" },
      },
    };
  }

  // What the tiles show and the summary of the server lacks: memory, power, and the energy that it adds up to.
  async latest() {
    const names = Object.values(this.view.run.metrics ?? {}).flat();
    const power = names.filter((name) => POWER.test(name)).slice(0, MOST_GPUS);
    const wanted = [
      ...["memory/peak_allocated_bytes", "memory/rss_bytes"].filter((name) => names.includes(name)),
      ...power,
    ];
    if (!wanted.length) return;
    try {
      const { found } = await fetchSeries({ runs: [this.view.id], metrics: wanted, x: "time", smooth: 0, count: 400 });
      const list = [...found].filter(([, all]) => all[0]?.y.length).map(([name, all]) => [name, all[0]]);
      this.newest = Object.fromEntries(list.map(([name, series]) => [name, series.y.at(-1)]));
      const measured = list.filter(([name]) => power.includes(name)).map(([, series]) => series);
      if (measured.length)
        this.energy = {
          watts: total(measured.map((series) => series.y.at(-1))),
          joules: total(measured.map(area)),
          gpus: measured.length,
        };
      this.told();
    } catch {
      // The tiles without these are still right.
    }
  }

  told() {
    this.drawCharts();
    const { info = {}, summary = {}, progress = {} } = this.view.run;
    const newest = this.newest ?? {};
    const step = progress.step ?? summary.step ?? 0;
    const total = progress.total_steps ?? summary.total_steps;
    const running = (summary.state ?? info.state) === "running";
    const memory = newest["memory/peak_allocated_bytes"] ?? newest["memory/rss_bytes"];
    // A run that was lost ended with the last thing it wrote.
    const end = info.ended
      ? new Date(info.ended)
      : new Date(running || !progress.last_time ? Date.now() : progress.last_time * 1000);
    const spent = info.started && end.getTime() - new Date(info.started).getTime();
    const tiles = [
      ["Step", total ? `${whole(step)} / ${whole(total)}` : whole(step)],
      running ? ["Time left", duration(progress.seconds_left)] : spent > 0 && ["Took", duration(spent / 1000)],
      ["Loss", number(summary.loss)],
      ["Eval loss", number(summary.eval_loss)],
      ["Tokens / s", count(progress.tokens_per_second)],
      progress.mfu !== null && progress.mfu !== undefined && ["MFU", percent(progress.mfu)],
      memory && [newest["memory/peak_allocated_bytes"] ? "Peak memory" : "Rank 0 memory", bytes(memory)],
      progress.tokens && ["Tokens", count(progress.tokens)],
      this.energy && [
        `Power, ${this.energy.gpus} ${this.energy.gpus === 1 ? "GPU" : "GPUs"}`,
        `${whole(this.energy.watts)} W`,
      ],
      this.energy && [
        "Energy",
        this.energy.joules < 3.6e6
          ? `${number(this.energy.joules / 3600, 3)} Wh`
          : `${number(this.energy.joules / 3.6e6, 3)} kWh`,
      ],
    ];
    fill(
      this.tiles,
      tiles.filter(Boolean).map(([name, value]) => h("div.tile", {}, h("dt", {}, name), h("dd", {}, value))),
    );
    this.drawProgress(step, total, running);
    fill(
      this.predicted,
      predictedPanel(this.view.run.predicted ?? [], info.predicted?.gpu),
      profilePanel(this.view.run.profile),
    );
    this.drawFacts(info, summary);
  }

  drawProgress(step, total, running) {
    if (!total) return fill(this.progress);
    const part = Math.min(1, step / total);
    const bar = h(
      "div.bar.wide",
      {
        role: "progressbar",
        "aria-label": "Steps done",
        "aria-valuenow": Math.round(part * 100),
        "aria-valuemin": 0,
        "aria-valuemax": 100,
        class: `bar wide ${running ? "moving" : ""}`,
      },
      h("span"),
    );
    bar.firstChild.style.width = `${(part * 100).toFixed(2)}%`;
    return fill(this.progress, bar, h("span.dim", {}, `${Math.floor(part * 100)} %`));
  }

  drawFacts(info, summary) {
    const from = info.provenance ?? {};
    const plan = info.plan ?? {};
    const architecture = plan.architecture ?? {};
    const packages = from.packages ?? {};
    const facts = [
      ["Created", info.created && `${moment(info.created)} (${ago(summary.age_seconds)})`],
      ["Started", info.started && moment(info.started)],
      ["Ended", info.ended && moment(info.ended)],
      ["Outcome", info.outcome],
      ["Ranks", info.world_size],
      ["Attempts", info.attempts],
      [
        "Model",
        architecture.family &&
          `${architecture.family}, ${count(architecture.parameters)} parameters${architecture.active_parameters && architecture.active_parameters !== architecture.parameters ? `, ${count(architecture.active_parameters)} active` : ""}`,
      ],
      [
        "Batch",
        plan.tokens_per_step &&
          `${count(plan.tokens_per_step)} tokens a step: ${plan.micro_batch} rows × ${plan.accumulation} × ${plan.world?.size} ranks`,
      ],
      ["Training", plan.tokens && `${count(plan.tokens)} tokens, ${count(plan.flops)} FLOPs`],
      [
        "Host",
        from.host &&
          `${from.host}${from.gpus?.length ? `, ${from.gpus.length} × ${from.gpus[0]}` : `, ${from.cpu ?? "CPU"}`}`,
      ],
      ["Code", from.git && `${String(from.git.commit).slice(0, 12)}${from.git.dirty ? ", with changes" : ""}`],
      [
        "Packages",
        Object.entries(packages)
          .slice(0, 6)
          .map(([name, version]) => `${name} ${version}`)
          .join(", "),
      ],
      ["Sweep", summary.sweep && h("a", { href: link(["sweeps", summary.sweep]) }, summary.sweep)],
      ["Command", from.command && h("code", {}, from.command.map(plain).join(" "))],
    ];
    const known = facts.filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false);
    if (!known.length) known.push(["This run", "nothing more is known"]);
    fill(
      this.facts,
      known.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    );
  }

  // Whether the alerts that the recipe asks for arrive.
  async testAlerts() {
    this.alert.disabled = true;
    try {
      const { sent } = await post("/api/alerts/test", { run: this.view.id });
      fill(this.sent, h("p.dim", {}, sent.join("; ")));
    } catch (error) {
      fill(this.sent, warning(error.message));
    }
    this.alert.disabled = false;
  }

  eventsChanged() {
    const shown = this.view.events
      .filter((event) => !QUIET.includes(event.kind))
      .slice(-60)
      .reverse();
    fill(this.timeline, shown.length ? shown.map(happened) : h("li.dim", {}, "Nothing yet."));
  }

  add(list) {
    if (list.length) this.redraw();
  }

  // Only that there is something new counts here: the curves are then read again, in buckets.
  streamParams() {
    return this.cursor === undefined
      ? {}
      : { runs: this.view.id, metrics: this.charts[0].metrics[0], cursors: `${this.view.id}:${this.cursor}` };
  }

  destroy() {
    this.redraw.cancel();
    for (const chart of this.charts) chart.destroy();
  }
}

function total(values) {
  return values.reduce((sum, value) => sum + (Number.isFinite(value) ? value : 0), 0);
}

// The integral of a series over its axis.
function area({ x, y }) {
  return total(x.slice(1).map((at, index) => ((at - x[index]) * (y[index] + y[index + 1])) / 2));
}

function happened(event) {
  const wrong = ["error", "warning"].includes(event.severity);
  const turn = ["attempt", "waiting"].includes(event.kind);
  return h(
    "li",
    { class: `event event-${wrong ? "wrong" : turn ? "turn" : "usual"}` },
    h("span.when", {}, moment(event.time).slice(5)),
    h(
      "span.what",
      {},
      event.words,
      // The report of a hang: what each rank did.
      event.kind === "hang" && event.table
        ? h("details", {}, h("summary", {}, "What each rank did"), h("pre.report", { tabindex: "0" }, event.table))
        : null,
    ),
  );
}

function rowsOf(list) {
  const rows = [["metric", "step", "smoothed", "min", "max"]];
  for (const series of list)
    series.x.forEach((x, index) =>
      rows.push([series.metric, x, series.y[index], series.min[index], series.max[index]]),
    );
  return rows;
}
