// Curves of one run or of many: charts by prefix of the metric, drawn when they come into sight, under one control bar.

import { get, id as quoted } from "../lib/api.js";
import { Chart } from "./charts.js";
import { settingsFrom } from "./curve_settings.js";
import { bandTraces, MARKS, markShapes, runTraces } from "./curve_traces.js";
import { debounce, field, fill, h, select, throttle, toggle } from "../lib/dom.js";
import { metric as metricText, moment, number, whole } from "../lib/format.js";
import { link, setParams } from "../lib/router.js";
import { AXES, extend, fetchSeries, isCurve, levelRange, originsOf, points, typicalRange } from "./series.js";
import { empty, warning } from "../lib/states.js";

const REFRESH_AFTER = 600;
const ORDER = ["train", "eval", "perf", "memory", "moe"];

export class Curves {
  // runs: [{id, label, colour(), group, info}]; metrics: {prefix: [names]}. A single run has marks of what happened.
  constructor({ runs, metrics, params, canBand = false }) {
    this.runs = runs;
    this.metrics = metrics;
    this.canBand = canBand;
    // Called with nothing: after each answer, and when the run behind the page has news.
    this.onFetched = undefined;
    this.told = undefined;
    this.marks = [];
    this.settings = settingsFrom(params);
    this.origins = originsOf(runs);
    this.charts = new Map();
    this.waiting = new Set();
    this.hiddenRuns = new Set();
    this.grid = h("div.curve-groups");
    this.problems = h("div");
    this.element = h("section.curves", { "aria-label": "Curves" }, this.bar(), this.problems, this.grid);
    this.sight = new IntersectionObserver((entries) => this.seen(entries), { rootMargin: "200px" });
    this.refresh = debounce(() => this.fetchVisible(), 120);
    this.redrawSoon = throttle(() => this.redrawDirty(), 700);
    this.dirty = new Set();
    this.draw();
    this.readMarks();
  }

  bar() {
    const { settings } = this;
    const slider = h("input", {
      type: "range",
      min: 0,
      max: 0.999,
      step: 0.001,
      value: settings.smooth,
      "aria-describedby": "smooth-value",
    });
    const shown = h("output", { id: "smooth-value" }, settings.smooth.toFixed(3));
    slider.addEventListener("input", () => {
      shown.textContent = Number(slider.value).toFixed(3);
      this.change({ smooth: Number(slider.value) }, { smooth: slider.value });
    });
    const search = h("input", {
      type: "search",
      value: settings.only,
      placeholder: "loss, perf/…",
      "data-search": "yes",
      oninput: () => {
        this.settings.only = search.value;
        setParams({ only: search.value });
        this.draw();
      },
    });
    const flag = (label, name, normal) =>
      toggle(label, settings[name], (on) =>
        this.change({ [name]: on }, { [name]: on === normal ? null : on ? "1" : "0" }),
      );
    this.reset = h(
      "button.small",
      { type: "button", hidden: !settings.from && !settings.to, onclick: () => this.zoom(null, null) },
      "Whole range",
    );
    this.key = h("ul.mark-key", { "aria-label": "Marks" });
    return h(
      "div.toolbar",
      {},
      field("Smoothing", h("span.slider", {}, slider, shown), { inline: true }),
      field(
        "x",
        select(Object.entries(AXES), settings.x, (x) => this.axis(x)),
        { inline: true },
      ),
      flag("log x", "logx", false),
      flag("log y", "logy", false),
      flag("outliers", "outliers", true),
      this.runs.length === 1 ? flag("events", "marks", true) : null,
      this.canBand ? flag("bands over seeds", "bands", false) : null,
      field("Metrics", search, { inline: true }),
      this.reset,
      this.key,
    );
  }

  axis(x) {
    this.change({ x, from: "", to: "" }, { x: x === "step" ? null : x, from: null, to: null });
    this.readMarks();
  }

  // What happened to a single run, where it stands on this axis.
  async readMarks() {
    if (this.runs.length !== 1) return;
    const { x } = this.settings;
    try {
      const { marks } = await get(`/api/runs/${quoted(this.runs[0].id)}/marks`, { x });
      if (x !== this.settings.x) return;
      const origin = x === "time" ? (this.origins[this.runs[0].id] ?? 0) : 0;
      this.marks = marks.map((mark) => ({ ...mark, x: mark.x - origin }));
    } catch {
      // Curves without marks are still true.
    }
    this.drawKey();
    for (const chart of this.charts.values()) if (chart.visible && chart.drawn) this.render(chart);
  }

  eventsChanged() {
    this.readMarks();
  }

  drawKey() {
    const kinds = Object.keys(MARKS).filter((kind) => this.marks.some((mark) => mark.kind === kind));
    fill(
      this.key,
      this.settings.marks &&
        kinds.map((kind) => {
          const [ink, dash, word] = MARKS[kind];
          return h(
            "li",
            {},
            h("span", { class: `stroke stroke-${ink} dash-${dash}`, "aria-hidden": "true" }),
            `${word} (${this.marks.filter((mark) => mark.kind === kind).length})`,
          );
        }),
    );
  }

  change(settings, parameters) {
    Object.assign(this.settings, settings);
    setParams(parameters);
    this.reset.hidden = !this.settings.from && !this.settings.to;
    this.drawKey();
    this.refresh();
  }

  zoom(from, to) {
    const undo = (value) => (value === null ? "" : this.settings.logx ? 10 ** value : Number(value));
    const [low, high] = [undo(from), undo(to)];
    this.change({ from: low === "" ? "" : String(low), to: high === "" ? "" : String(high) }, { from: low, to: high });
  }

  // Names may grow while a run is young.
  setMetrics(metrics) {
    const known = JSON.stringify(this.metrics);
    this.metrics = metrics;
    if (JSON.stringify(metrics) !== known) this.draw();
  }

  groups() {
    const wanted = this.settings.only.trim().toLowerCase();
    const order = (prefix) => (ORDER.includes(prefix) ? ORDER.indexOf(prefix) : ORDER.length);
    return Object.entries(this.metrics)
      .map(([prefix, names]) => {
        const found = lossFirst(names.filter((name) => isCurve(name) && name.toLowerCase().includes(wanted)));
        return /** @type {[string, string[]]} */ ([prefix, found]);
      })
      .filter(([, names]) => names.length)
      .sort((a, b) => order(a[0]) - order(b[0]) || a[0].localeCompare(b[0]));
  }

  draw() {
    const groups = this.groups();
    const shown = new Set(groups.flatMap(([, names]) => names));
    for (const [name, chart] of this.charts) {
      if (shown.has(name)) continue;
      this.sight.unobserve(chart.element);
      chart.destroy();
      this.charts.delete(name);
    }
    if (!groups.length) {
      fill(
        this.grid,
        empty(
          this.settings.only ? "No metric is called so" : "No metrics yet",
          this.settings.only ? "Change the text above to see others." : "They appear with the first step.",
        ),
      );
      return;
    }
    fill(
      this.grid,
      groups.map(([prefix, names]) =>
        h(
          "details.group",
          {
            open: !this.settings.closed.has(prefix),
            ontoggle: (event) => this.keep("closed", prefix, !event.target.open),
          },
          h("summary", {}, h("h2", {}, prefix), h("span.count", {}, String(names.length))),
          h(
            "div",
            { class: names.length < 3 ? "chart-grid two" : "chart-grid" },
            names.map((name) => this.chart(name).element),
          ),
        ),
      ),
    );
  }

  // What is folded and what is large stays so when the page is read again.
  keep(setting, name, on) {
    const kept = this.settings[setting];
    if (kept.has(name) === on) return;
    if (on) kept.add(name);
    else kept.delete(name);
    setParams({ [setting]: [...kept].join(",") });
  }

  chart(name) {
    if (this.charts.has(name)) return this.charts.get(name);
    const chart = new Chart({
      title: name,
      draw: () => this.figure(name),
      rows: () => this.rows(name),
      describe: () => this.describe(name),
      onZoom: (from, to) => this.zoom(from, to),
      onPick: (point) => this.picked(name, point),
      large: this.settings.large.has(name),
      onLarge: (large) => this.keep("large", name, large),
    });
    chart.plot.classList.add("loading");
    chart.element.dataset.metric = name;
    this.charts.set(name, chart);
    this.sight.observe(chart.element);
    return chart;
  }

  seen(entries) {
    for (const entry of entries) {
      const name = entry.target.dataset.metric;
      const chart = this.charts.get(name);
      if (!chart) continue;
      chart.visible = entry.isIntersecting;
      if (chart.visible && chart.stamp !== this.stamp()) this.waiting.add(name);
    }
    // The first charts come at once; while one scrolls, their requests wait for one another.
    if (this.waiting.size && !this.asked) this.fetchVisible();
    else if (this.waiting.size) this.refresh();
  }

  // A click on a single run's curve offers what it was trained on there.
  picked(name, point) {
    if (this.runs.length !== 1 || this.settings.x !== "step" || !/^(train|moe)\//.test(name)) return;
    const step = Math.round(point.x);
    this.charts
      .get(name)
      .say([
        `${number(point.y)} at `,
        h("a", { href: link(["run", this.runs[0].id], { tab: "documents", step }) }, `step ${whole(step)}: documents`),
      ]);
  }

  // What the data of a chart depends on.
  stamp() {
    const { smooth, x, from, to } = this.settings;
    return `${smooth} ${x} ${from} ${to}`;
  }

  async fetchVisible() {
    const stamp = this.stamp();
    const names = [...this.charts]
      .filter(
        ([name, chart]) =>
          (chart.visible || this.waiting.has(name)) && (chart.stamp !== stamp || this.waiting.has(name)),
      )
      .map(([name]) => name);
    const rest = [...this.charts].filter(([, chart]) => chart.visible && chart.stamp === stamp);
    this.waiting.clear();
    for (const [, chart] of rest) this.render(chart);
    if (!names.length) return;
    this.asked = true;
    this.abort?.abort();
    this.abort = new AbortController();
    const width = this.charts.get(names[0]).plot.clientWidth;
    const { smooth, x } = this.settings;
    const asked = {
      runs: this.runs.map((run) => run.id),
      metrics: names,
      x,
      smooth,
      ...this.range(),
      origins: this.origins,
    };
    let answer;
    try {
      answer = await fetchSeries({ ...asked, count: points(width, this.runs.length), signal: this.abort.signal });
    } catch (error) {
      if (error.name !== "AbortError") fill(this.problems, warning(error.message));
      else for (const name of names) this.waiting.add(name);
      return;
    }
    fill(this.problems, answer.problems.map(warning));
    for (const name of names) {
      const chart = this.charts.get(name);
      if (!chart) continue;
      chart.series = answer.found.get(name);
      chart.stamp = stamp;
      this.render(chart);
    }
    this.onFetched?.();
  }

  // What the server is asked for. Runs that start at different times share no range of time.
  range() {
    const { x, from, to } = this.settings;
    if (x !== "time") return { from, to };
    if (this.runs.length > 1) return {};
    const origin = this.origins[this.runs[0].id];
    return { from: from && String(Number(from) + origin), to: to && String(Number(to) + origin) };
  }

  // What the stream is asked for: the metrics in sight, from where each run was read to.
  streamParams() {
    const drawn = [...this.charts].filter(([, chart]) => chart.visible && chart.series);
    const cursors = new Map();
    for (const [, chart] of drawn) {
      for (const { run, cursor } of chart.series) cursors.set(run, Math.min(cursor ?? 0, cursors.get(run) ?? Infinity));
    }
    if (!cursors.size) return {};
    return {
      runs: [...cursors.keys()],
      metrics: drawn.map(([name]) => name),
      x: this.settings.x,
      cursors: [...cursors].map(([run, cursor]) => `${run}:${cursor}`),
    };
  }

  async render(chart) {
    if (!chart.series) return;
    chart.plot.classList.remove("loading");
    chart.say(
      this.runs.length === 1 && chart.series[0]?.y.length ? metricText(chart.title, chart.series[0].y.at(-1)) : "",
    );
    try {
      await chart.render();
    } catch (error) {
      fill(this.problems, warning(error.message));
    }
  }

  // New points, from the stream. A long tail of single points is fetched anew, in buckets.
  add(list) {
    for (const news of list) {
      const chart = this.charts.get(news.metric);
      const series = chart?.series?.find((one) => one.run === news.run);
      if (!series || this.settings.to) continue;
      chart.added =
        (chart.added ?? 0) + (news.replace ? REFRESH_AFTER + 1 : extend(series, news, this.settings.smooth));
      series.cursor = news.cursor;
      this.dirty.add(chart);
    }
    if (this.dirty.size) this.redrawSoon();
  }

  redrawDirty() {
    for (const chart of this.dirty) {
      if (chart.added > REFRESH_AFTER) {
        chart.added = 0;
        chart.stamp = null;
        this.waiting.add(chart.title);
      } else if (chart.visible) this.render(chart);
    }
    this.dirty.clear();
    if (this.waiting.size) this.refresh();
  }

  hide(run, hidden) {
    if (hidden) this.hiddenRuns.add(run);
    else this.hiddenRuns.delete(run);
    for (const chart of this.charts.values()) if (chart.drawn) this.render(chart);
  }

  highlight(run) {
    this.raised = run;
    for (const chart of this.charts.values()) if (chart.visible && chart.drawn) this.render(chart);
  }

  figure(name) {
    const chart = this.charts.get(name);
    const list = (chart?.series ?? []).filter((series) => !this.hiddenRuns.has(series.run));
    const traces = this.settings.bands && this.canBand ? bandTraces(list, this.runs) : this.lines(list);
    return { traces, layout: this.layout(name, list) };
  }

  lines(list) {
    const look = {
      smooth: this.settings.smooth,
      raised: this.raised,
      together: list.length,
      alone: this.runs.length === 1,
    };
    return list.flatMap((series) =>
      runTraces(
        series,
        this.runs.find((one) => one.id === series.run),
        look,
      ),
    );
  }

  layout(name, list) {
    const { settings } = this;
    const log = (value) => (settings.logx ? Math.log10(Math.max(Number(value), 1e-12)) : Number(value));
    const range = settings.from !== "" && settings.to !== "" ? [log(settings.from), log(settings.to)] : undefined;
    const lists = list.flatMap((series) => (settings.smooth > 0 ? [series.y] : [series.min, series.max]));
    const yRange =
      (settings.outliers ? undefined : typicalRange(lists, settings.logy)) ?? levelRange(lists, settings.logy);
    return {
      showlegend: this.settings.bands && this.canBand,
      legend: { x: 1, xanchor: "right", y: 1, orientation: "v", bgcolor: "rgba(0,0,0,0)" },
      hovermode: list.length > 12 ? "closest" : "x unified",
      xaxis: {
        type: settings.logx ? "log" : "linear",
        range,
        autorange: !range,
        title: { text: AXES[settings.x] + (settings.x === "time" ? " (s)" : "") },
        hoverformat: ",~r",
      },
      yaxis: {
        type: settings.logy ? "log" : "linear",
        range: yRange,
        autorange: !yRange,
        fixedrange: true,
        ticksuffix: name.endsWith("_bytes") ? "B" : "",
      },
      shapes: settings.marks ? markShapes(this.marks) : [],
    };
  }

  rows(name) {
    const rows = [["run", this.settings.x, "smoothed", "min", "max"]];
    for (const series of this.charts.get(name).series ?? []) {
      series.x.forEach((x, index) => rows.push([series.run, x, series.y[index], series.min[index], series.max[index]]));
    }
    return rows;
  }

  describe(name) {
    const list = this.charts.get(name)?.series ?? [];
    if (!list.length) return "no values";
    if (list.length > 1)
      return `${list.length} runs; last values ${list
        .slice(0, 6)
        .map((series) => number(series.y.at(-1)))
        .join(", ")}`;
    const { x, y } = list[0];
    return `from ${number(y[0])} to ${number(y.at(-1))}, at ${this.settings.x} ${this.settings.x === "time" ? moment(x.at(-1)) : number(x.at(-1))}`;
  }

  destroy() {
    this.abort?.abort();
    this.refresh.cancel();
    this.redrawSoon.cancel();
    this.sight.disconnect();
    for (const chart of this.charts.values()) chart.destroy();
    this.charts.clear();
  }
}

function lossFirst(names) {
  const rank = (name) => (name.endsWith("/loss") ? 0 : 1);
  return [...names].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}
