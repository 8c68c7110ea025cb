// Parallel coordinates as SVG. plotly's need WebGL code that is compiled in the page, which its policy forbids.

import { svg } from "../lib/dom.js";
import { number, plain } from "../lib/format.js";

const HEIGHT = 300;
const TOP = 34;
const BOTTOM = 18;
const SIDE = 74;

// runs: [{id, label}]; axes: [{name, of(run id)}], the last is the result that colours the lines.
export function parallel(runs, axes, open, room = 0) {
  const width = Math.max(480, axes.length * 130, room);
  const scales = axes.map((axis) => scaleOf(runs.map((run) => axis.of(run.id))));
  const at = (index) => SIDE + (index * (width - 2 * SIDE)) / (axes.length - 1);
  const kept = axes.map(() => null);
  const result = scales.at(-1);
  const lines = runs.map((run) => {
    const path = axes
      .map((axis, index) => [at(index), scales[index].place(axis.of(run.id))])
      .filter(([, y]) => y !== null);
    const part = result.place(axes.at(-1).of(run.id));
    const line = svg(
      "path.run-line",
      {
        d: `M${path.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`,
        stroke: tint(part),
        tabindex: "0",
        role: "link",
        "aria-label": said(run, axes),
        onclick: () => open(run.id),
        onkeydown: (event) => event.key === "Enter" && open(run.id),
      },
      svg("title", {}, said(run, axes)),
    );
    return { run, line };
  });
  const filter = () => {
    for (const { run, line } of lines) {
      const passes = axes.every((axis, index) => {
        const y = scales[index].place(axis.of(run.id));
        return !kept[index] || (y !== null && y >= kept[index][0] && y <= kept[index][1]);
      });
      line.classList.toggle("out", !passes);
    }
  };
  const image = svg(
    "svg.parallel",
    {
      width,
      height: HEIGHT,
      viewBox: `0 0 ${width} ${HEIGHT}`,
      role: "group",
      "aria-label": `Parallel coordinates of ${runs.length} runs over ${axes.map((axis) => axis.name).join(", ")}`,
    },
    lines.map(({ line }) => line),
  );
  axes.forEach((axis, index) =>
    image.append(
      axisOf(axis, scales[index], at(index), index === 0, image, (range) => {
        kept[index] = range;
        filter();
      }),
    ),
  );
  return image;
}

function said(run, axes) {
  return `${run.label}: ${axes.map((axis) => `${axis.name} ${number(axis.of(run.id))}`).join(", ")}`;
}

// Numbers on a line, on a logarithmic one where they span much; anything else in the order of its text.
function scaleOf(values) {
  const known = values.filter((value) => value !== undefined && value !== null && !Number.isNaN(value));
  const span = HEIGHT - TOP - BOTTOM;
  const numbers = known.filter(Number.isFinite);
  const distinct = [...new Set(numbers)].sort((a, b) => a - b);
  if (numbers.length && numbers.length === known.length && new Set(numbers).size > 1) {
    const log = Math.min(...numbers) > 0 && Math.max(...numbers) / Math.min(...numbers) > 20;
    const f = log ? Math.log : (value) => value;
    const [low, high] = [f(Math.min(...numbers)), f(Math.max(...numbers))];
    const inverse = (part) => (log ? Math.exp(low + part * (high - low)) : low + part * (high - low));
    const place = (value) => (Number.isFinite(value) ? TOP + span * (1 - (f(value) - low) / (high - low)) : null);
    const marked = distinct.length <= 5 ? distinct : [0, 0.25, 0.5, 0.75, 1].map(inverse);
    return { place, ticks: marked.map((value) => [place(value), number(value, 3)]) };
  }
  const texts = [...new Set(known.map(plain))].sort();
  const y = (text) => TOP + span * (texts.length === 1 ? 0.5 : 1 - texts.indexOf(text) / (texts.length - 1));
  return {
    place: (value) => (value === undefined || value === null ? null : y(plain(value))),
    ticks: texts.slice(0, 12).map((text) => [y(text), text.slice(0, 14)]),
  };
}

function axisOf(axis, scale, x, first, image, keep) {
  const shade = svg("rect.brush", { x: x - 9, y: 0, width: 18, height: 0 });
  const catcher = svg("rect.catch", { x: x - 14, y: TOP, width: 28, height: HEIGHT - TOP - BOTTOM });
  let from = null;
  const place = (event) => Math.max(TOP, Math.min(HEIGHT - BOTTOM, event.clientY - image.getBoundingClientRect().top));
  catcher.addEventListener("pointerdown", (event) => {
    from = place(event);
    catcher.setPointerCapture(event.pointerId);
  });
  catcher.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const range = [Math.min(from, place(event)), Math.max(from, place(event))];
    shade.setAttribute("y", range[0]);
    shade.setAttribute("height", range[1] - range[0]);
    if (range[1] - range[0] > 3) keep(range);
  });
  catcher.addEventListener("pointerup", () => (from = null));
  catcher.addEventListener("dblclick", () => {
    shade.setAttribute("height", 0);
    keep(null);
  });
  const short = axis.name.length > 22 ? `…${axis.name.slice(-21)}` : axis.name;
  return svg(
    "g",
    {},
    svg("line.axis", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
    shade,
    svg("text.name", { x, y: 16, "text-anchor": "middle" }, short, svg("title", {}, axis.name)),
    scale.ticks.map(([y, text]) => tick(x, y, text, first)),
    catcher,
  );
}

// Left of the first axis, where no lines are; elsewhere on a ground that hides them.
function tick(x, y, text, first) {
  if (first) return svg("text.tick", { x: x - 7, y: y + 4, "text-anchor": "end" }, text);
  return [
    svg("rect.tick-ground", { x: x + 4, y: y - 7, width: 6.4 * text.length + 4, height: 14, rx: 2 }),
    svg("text.tick", { x: x + 6, y: y + 4 }, text),
  ];
}

// From blue for what lies low on the axis of the result to orange for what lies high.
function tint(y) {
  if (y === null) return "#8a929c";
  const part = 1 - (y - TOP) / (HEIGHT - TOP - BOTTOM);
  const [low, high] = [
    [58, 110, 220],
    [222, 110, 20],
  ];
  return `rgb(${low.map((value, index) => Math.round(value + (high[index] - value) * part)).join(",")})`;
}
