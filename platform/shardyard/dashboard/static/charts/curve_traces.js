// What plotly draws of series: lines with their envelope, bands over seeds, and marks of what happened.

import { band, envelope } from "./series.js";
import { colour } from "../lib/theme.js";

const SMOOTH_FROM_ENVELOPE = 12;
const FEW = 40;

// How each kind of mark looks: its colour, its dash, and its word in the key.
export const MARKS = {
  attempt: ["warn", "solid", "restart"],
  failure: ["bad", "solid", "failure"],
  stage: ["accent", "solid", "stage"],
  hang: ["second", "solid", "hang"],
  replicas_differ: ["second", "dashdot", "ranks differ"],
  anomaly: ["warn", "dashdot", "batch skipped or rolled back"],
  spike: ["bad", "dot", "spike"],
  checkpoint_failed: ["bad", "dashdot", "checkpoint failed"],
  checkpoint: ["line-strong", "dot", "checkpoint"],
};

// One run: its smoothed line, and behind it what was recorded. `look`: {smooth, raised, together, alone}.
export function runTraces(series, run, { smooth, raised, together, alone }) {
  const faded = raised && raised !== series.run;
  const ink = run.colour();
  const drawn = {
    type: "scatter",
    mode: series.x.length === 1 ? "markers" : "lines",
    opacity: faded ? 0.18 : 1,
    line: { color: ink, width: raised === series.run ? 2.6 : 1.6 },
  };
  const few =
    series.x.length > 1 && series.x.length <= FEW
      ? { mode: "lines+markers", marker: { size: 4, color: ink } }
      : { marker: { size: 5, color: ink } };
  const hovertemplate = alone ? "%{y:.5~g}<extra></extra>" : "%{y:.5~g}<extra>%{fullData.name}</extra>";
  const main = { ...drawn, ...few, hovertemplate, x: series.x, y: series.y, name: safe(run.label) };
  const raw = together <= SMOOTH_FROM_ENVELOPE || smooth === 0 ? envelope(series) : null;
  if (!raw || (smooth === 0 && series.raw)) return [main];
  const faint = smooth === 0 ? 0.6 : 0.25;
  return [
    {
      ...drawn,
      mode: "lines",
      x: raw.x,
      y: raw.y,
      line: { color: ink, width: 1 },
      opacity: faded ? 0.06 : faint,
      hoverinfo: "skip",
      name: safe(run.label),
      showlegend: false,
    },
    main,
  ];
}

// Runs that differ in their seeds alone, as their mean between the least and the greatest of them.
export function bandTraces(list, runs) {
  const groups = new Map();
  for (const series of list) {
    const { group } = runs.find((run) => run.id === series.run);
    groups.set(group, [...(groups.get(group) ?? []), series]);
  }
  return [...groups].flatMap(([group, members]) => {
    const found = band(members);
    if (!found) return [];
    const first = runs.find((run) => run.id === members[0].run);
    const ink = first.colour();
    const edge = {
      type: "scatter",
      mode: "lines",
      x: found.x,
      line: { width: 0, color: ink },
      hoverinfo: "skip",
      showlegend: false,
    };
    const name = safe(members.length > 1 ? `${group} (${members.length} seeds)` : first.label);
    return [
      { ...edge, y: found.low },
      { ...edge, y: found.high, fill: "tonexty", fillcolor: alpha(ink, 0.2) },
      {
        type: "scatter",
        mode: "lines",
        x: found.x,
        y: found.mean,
        name,
        line: { color: ink, width: 1.8 },
        hovertemplate: "%{y:.5~g}<extra>%{fullData.name}</extra>",
      },
    ];
  });
}

export function markShapes(marks) {
  return marks
    .filter((mark) => mark.kind in MARKS)
    .map(({ kind, x }) => ({
      type: "line",
      xref: "x",
      yref: "paper",
      x0: x,
      x1: x,
      y0: 0,
      y1: 1,
      layer: "below",
      line: { color: colour(MARKS[kind][0]), width: 1, dash: MARKS[kind][1] },
    }));
}

// plotly reads a little markup in names; text of people is shown as it is.
export function safe(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function alpha(hex, opacity) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}
