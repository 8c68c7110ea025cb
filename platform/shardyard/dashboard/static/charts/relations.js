// How settings and results hang together: parallel coordinates over several of them, and a scatter of any two.

import { Chart, drawing } from "./charts.js";
import { safe } from "./curve_traces.js";
import { field, fill, h, select, toggle } from "../lib/dom.js";
import { plain } from "../lib/format.js";
import { parallel } from "./parallel.js";
import { go, setParams } from "../lib/router.js";
import { empty } from "../lib/states.js";
import { colour, onTheme } from "../lib/theme.js";

const MOST_AXES = 7;

export class Relations {
  // axes and metrics: [{name, of(run id)}].
  constructor(place, { runs, axes, metrics, params, metric = undefined }) {
    this.place = place;
    this.runs = runs;
    this.axes = axes;
    this.metrics = metrics;
    const wanted = params.get("metric") ?? metric;
    this.metric = metrics.find((one) => one.name === wanted) ?? metrics[0];
    this.first =
      axes.find((one) => one.name === params.get("against")) ??
      axes.find((one) => numeric(one, runs)) ??
      axes[0] ??
      metrics[1];
    this.log = params.get("logm") === "1";
    this.stopTheme = onTheme(() => this.draw());
    this.draw();
  }

  draw() {
    this.scatter?.destroy();
    if (!this.metric || (!this.axes.length && this.metrics.length < 2)) {
      fill(this.place, empty("Nothing varies", "These runs have the same settings, or no results yet."));
      return;
    }
    const all = [...this.axes, ...this.metrics];
    const name = (one) => one.name;
    const bar = h(
      "div.toolbar",
      {},
      field(
        "Result",
        select(this.metrics.map(name), this.metric.name, (chosen) =>
          this.change({ metric: this.metrics.find((one) => one.name === chosen) }, { metric: chosen }),
        ),
        { inline: true },
      ),
      this.first &&
        field(
          "against",
          select(all.map(name), this.first.name, (chosen) =>
            this.change({ first: all.find((one) => one.name === chosen) }, { against: chosen }),
          ),
          { inline: true },
        ),
      toggle("log result", this.log, (log) => this.change({ log }, { logm: log ? "1" : null })),
    );
    const chosen = [...this.axes.slice(0, MOST_AXES - 1), this.metric];
    const image =
      chosen.length > 1 ? parallel(this.runs, chosen, (run) => go(["run", run]), this.place.clientWidth - 22) : null;
    this.scatter =
      this.first &&
      new Chart({
        title: `${this.metric.name} against ${this.first.name}`,
        height: 300,
        draw: () => this.figure(),
        rows: () => this.rows([this.first, this.metric]),
        onPick: (point) => go(["run", point.customdata]),
        describe: () => `${this.runs.length} runs`,
      });
    fill(
      this.place,
      bar,
      image &&
        drawing(
          "Parallel coordinates",
          image,
          () => this.rows(chosen),
          h(
            "p.dim",
            {},
            "Each line is a run, its colour the result. Drag along an axis to keep what passes there; double-click an axis to let all pass again.",
          ),
        ),
      this.scatter?.element,
    );
    this.scatter?.render();
  }

  change(fields, parameters) {
    Object.assign(this, fields);
    setParams(parameters);
    this.draw();
  }

  figure() {
    const shown = this.runs.filter((run) => has(this.first.of(run.id)) && has(this.metric.of(run.id)));
    const values = shown.map((run) => this.first.of(run.id));
    const numbers = values.every((value) => typeof value === "number");
    const spread = numbers && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 20;
    return {
      traces: [
        {
          type: "scatter",
          mode: "markers",
          x: numbers ? values : values.map((value) => safe(plain(value))),
          y: shown.map((run) => this.metric.of(run.id)),
          customdata: shown.map((run) => run.id),
          text: shown.map((run) => safe(run.label)),
          marker: { size: 9, color: colour("accent"), opacity: 0.8, line: { width: 1, color: colour("surface") } },
          hovertemplate: "%{text}<br>%{x}: %{y:.5~g}<extra></extra>",
        },
      ],
      layout: {
        hovermode: "closest",
        xaxis: { type: numbers ? (spread ? "log" : "linear") : "category", title: { text: safe(this.first.name) } },
        yaxis: { type: this.log ? "log" : "linear", title: { text: safe(this.metric.name) } },
      },
    };
  }

  rows(axes) {
    return [
      ["run", ...axes.map((axis) => axis.name)],
      ...this.runs.map((run) => [
        run.id,
        ...axes.map((axis) => (typeof axis.of(run.id) === "number" ? axis.of(run.id) : plain(axis.of(run.id)))),
      ]),
    ];
  }

  destroy() {
    this.stopTheme();
    this.scatter?.destroy();
  }
}

function has(value) {
  return value !== undefined && value !== null && !Number.isNaN(value);
}

function numeric(axis, runs) {
  return runs.some((run) => typeof axis.of(run.id) === "number");
}
