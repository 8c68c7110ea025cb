// What the plan of a run predicted beside what the run measures: speed, and the memory of a rank.

import { h } from "../lib/dom.js";
import { bytes, count, duration, NOTHING, percent } from "../lib/format.js";
import { simpleTable } from "../lib/table.js";

const SHOWN = {
  tokens_per_second: ["Tokens / s", count],
  step_seconds: ["Step time", duration],
  mfu: ["MFU", percent],
  memory_bytes: ["Memory a rank", bytes],
};

// Nothing for runs of versions that recorded no prediction.
export function predictedPanel(list, gpu) {
  const known = list.filter((one) => one.what in SHOWN);
  if (!known.length) return null;
  const rows = known.map((one) => {
    const [name, format] = SHOWN[one.what];
    return [name, format(one.measured), format(one.predicted), difference(one)];
  });
  return h(
    "section.panel.predicted",
    { "aria-labelledby": "predicted" },
    h("div.head", {}, h("h2", { id: "predicted" }, "Predicted and measured")),
    simpleTable("Predicted and measured", ["Quantity", "Measured", "Predicted", "Off by"], rows, {
      numeric: [1, 2, 3],
      className: "stacked",
    }),
    h("p.dim", {}, explained(known, gpu)),
  );
}

// A sign in front, so that no colour has to say which way it is off.
function difference({ difference: share, resident }) {
  if (resident) return "not comparable";
  if (typeof share !== "number") return NOTHING;
  const size = Math.abs(100 * share);
  return `${share >= 0 ? "+" : "−"}${size < 10 ? size.toFixed(1) : Math.round(size)} %`;
}

function explained(known, gpu) {
  const speed = known.some((one) => one.what === "tokens_per_second");
  return [
    "By the plan, when the ranks started.",
    speed
      ? `Speeds: for ${gpu}, beside the median of the newest steps.`
      : "No speed is predicted without a GPU that the plan knows, or over several nodes.",
    known.some((one) => one.resident) &&
      "Memory was measured as all that the process holds, with Python, torch and DeepSpeed; the plan counts the tensors of a step.",
  ]
    .filter(Boolean)
    .join(" ");
}
