// A curve the size of a word.

import { real } from "../lib/format.js";
import { svg } from "../lib/dom.js";

export function sparkline(values, { width = 96, height = 20, label = "loss" } = {}) {
  const numbers = (values ?? []).map(real).filter((value) => typeof value === "number");
  const finite = numbers.filter(Number.isFinite);
  if (finite.length < 2) return "";
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const x = (index) => 1 + (index * (width - 4)) / (numbers.length - 1);
  const y = (value) => (high === low ? height / 2 : 2 + ((high - value) * (height - 4)) / (high - low));
  let path = "";
  let pen = false;
  numbers.forEach((value, index) => {
    if (!Number.isFinite(value)) {
      pen = false;
      return;
    }
    path += `${pen ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = true;
  });
  const last = numbers.findLastIndex(Number.isFinite);
  const text = `${label} from ${finite[0].toPrecision(3)} to ${finite.at(-1).toPrecision(3)}`;
  return svg(
    "svg.spark",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text },
    svg("path", { d: path }),
    svg("circle", { cx: x(last).toFixed(1), cy: y(numbers[last]).toFixed(1), r: 1.8 }),
  );
}
