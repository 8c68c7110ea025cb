// Series as the server sends them, ready to draw: numbers, the envelope that keeps spikes, and points that came later.

import { get } from "../lib/api.js";
import { real } from "../lib/format.js";

const MOST_POINTS = 1500;
const MOST_IN_ALL = 40000;
const MOST_METRICS = 12;

export const AXES = { step: "Step", tokens: "Tokens", time: "Time since start", flops: "FLOPs" };

// How many points a curve is worth: about one a pixel, fewer where many runs share the chart.
export function points(width, runs) {
  return Math.max(120, Math.min(MOST_POINTS, Math.round(width) || 600, Math.floor(MOST_IN_ALL / Math.max(1, runs))));
}

// Ask for metrics of runs; the answer maps metric to a list of series, one a run that has it.
// On the axis of time, each run begins at 0: `origins` has the Unix time of each run's start.
export async function fetchSeries({
  runs,
  metrics,
  x,
  smooth,
  from = undefined,
  to = undefined,
  count,
  signal = undefined,
  origins = {},
}) {
  const found = new Map(metrics.map((metric) => [metric, []]));
  const problems = [];
  const parts = [];
  for (let index = 0; index < metrics.length; index += MOST_METRICS)
    parts.push(metrics.slice(index, index + MOST_METRICS));
  const answers = await Promise.all(
    parts.map((part) => get("/api/series", { runs, metrics: part, x, smooth, from, to, points: count }, signal)),
  );
  for (const answer of answers) {
    problems.push(...(answer.problems ?? []));
    for (const series of answer.series)
      found.get(series.metric)?.push(ready(series, x === "time" ? (origins[series.run] ?? 0) : 0));
  }
  return { found, problems };
}

function ready(series, origin) {
  const numbers = (list) => (list ?? []).map(real);
  const x = origin ? numbers(series.x).map((at) => at - origin) : numbers(series.x);
  return { ...series, x, origin, y: numbers(series.y), min: numbers(series.min), max: numbers(series.max) };
}

// Least and greatest of each bucket, in turns: a line through them shows every spike, as the raw curve would.
export function envelope(series) {
  if (!series.min.length) return null;
  const x = [];
  const y = [];
  series.x.forEach((at, index) => {
    const low = series.min[index];
    const high = series.max[index];
    x.push(at);
    y.push(low);
    if (high !== low) {
      x.push(at);
      y.push(high);
    }
  });
  return { x, y };
}

// Continue a smoothed curve with points that came later, as a debiased moving average does: what came before the last
// point of the server is not known here, so its value stands for it. Returns how many points are new.
export function extend(series, news, smooth) {
  const before = series.x.length;
  news.x.forEach((place, index) => {
    const at = real(place) - series.origin;
    const value = real(news.y[index]);
    if (!(at > (series.x.at(-1) ?? -Infinity))) return;
    const last = series.y.at(-1);
    series.x.push(at);
    series.min.push(value);
    series.max.push(value);
    series.y.push(Number.isFinite(last) && Number.isFinite(value) ? smooth * last + (1 - smooth) * value : value);
  });
  return series.x.length - before;
}

// Range of y that leaves out the outermost hundredth on both sides.
export function typicalRange(lists, log) {
  const values = lists
    .flat()
    .filter((value) => Number.isFinite(value) && (!log || value > 0))
    .sort((a, b) => a - b);
  if (values.length < 20) return undefined;
  let low = values[Math.floor(values.length * 0.01)];
  let high = values[Math.ceil(values.length * 0.99) - 1];
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  const margin = (high - low) * 0.06 || 0.5;
  return [low - margin, high + margin];
}

// Around values that are all the same, where plotly would go from -1 to 1.
export function levelRange(lists, log) {
  const values = lists.flat().filter(Number.isFinite);
  const level = values[0];
  if (log || !level || values.some((value) => value !== level)) return undefined;
  return [level - Math.abs(level) / 10, level + Math.abs(level) / 10];
}

// When runs started, in Unix seconds, by id.
export function originsOf(runs) {
  return Object.fromEntries(
    runs.map(({ id, info = /** @type {Record<string, any>} */ ({}) }) => [
      id,
      new Date(info.started ?? info.created ?? 0).getTime() / 1000 || 0,
    ]),
  );
}

// Metrics that are numbers over steps and belong into charts: tables of experts have a view of their own.
export function isCurve(name) {
  return !name.includes("moe/tokens/");
}

// Mean, least and greatest over runs at common x; each run counts where it has values.
export function band(list, count = 400) {
  const useful = list.filter((series) => series.x.length > 1);
  if (!useful.length) return null;
  const from = Math.min(...useful.map((series) => series.x[0]));
  const to = Math.max(...useful.map((series) => series.x.at(-1)));
  const x = Array.from({ length: count }, (_, index) => from + ((to - from) * index) / (count - 1));
  const rows = useful.map((series) => resample(series, x));
  const at = (index) => rows.map((row) => row[index]).filter(Number.isFinite);
  const kept = x.map((value, index) => [value, at(index)]).filter(([, values]) => values.length);
  return {
    x: kept.map(([value]) => value),
    mean: kept.map(([, values]) => values.reduce((sum, value) => sum + value, 0) / values.length),
    low: kept.map(([, values]) => Math.min(...values)),
    high: kept.map(([, values]) => Math.max(...values)),
  };
}

function resample(series, x) {
  let index = 0;
  return x.map((at) => {
    if (at < series.x[0] || at > series.x.at(-1)) return NaN;
    while (index < series.x.length - 2 && series.x[index + 1] < at) index += 1;
    const [x0, x1] = [series.x[index], series.x[index + 1]];
    const [y0, y1] = [series.y[index], series.y[index + 1]];
    return x1 === x0 ? y1 : y0 + ((y1 - y0) * (at - x0)) / (x1 - x0);
  });
}
