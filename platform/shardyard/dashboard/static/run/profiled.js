// Where the time of the profiled steps went, and what to change first.

import { h, prose, shell } from "../lib/dom.js";
import { duration, percent } from "../lib/format.js";
import { simpleTable } from "../lib/table.js";

// Nothing for runs that were not profiled.
export function profilePanel(profile) {
  if (!profile) return null;
  const several = profile.ranks > 1;
  const titles = ["Part", "Share", "Time", "What it is", ...(several ? ["Slowest rank"] : [])];
  const rows = profile.parts.map((one) => [
    capital(one.part),
    h("span.share", {}, percent(one.share), meter(one.share)),
    short(one.seconds),
    one.meaning,
    ...(several ? [`rank ${one.slowest}: ${short(one.slowest_seconds)}`] : []),
  ]);
  const whole = `Steps ${profile.first} to ${profile.last}: ${short(profile.step_seconds)} a step`;
  return h(
    "section.panel.profiled",
    { "aria-labelledby": "profiled" },
    h("div.head", {}, h("h2", { id: "profiled" }, "Where a step's time goes")),
    h("p.dim", {}, several ? `${whole}, mean of ${profile.ranks} ranks.` : `${whole}.`),
    simpleTable("Where a step's time goes", titles, rows, {
      numeric: [1, 2],
      className: "stacked",
    }),
    profile.advice.length > 0 && h("h3", {}, "To change first"),
    profile.advice.length > 0 && h("ol.advice", {}, profile.advice.map(advised)),
  );
}

function advised(one) {
  const settings = one.set.map((setting) => `-s ${shell(setting)}`).join(" ");
  return h("li", {}, prose(one.text), settings ? [" Try ", h("code", {}, settings), "."] : null);
}

function meter(share) {
  const bar = h("span.bar", { "aria-hidden": "true" }, h("span"));
  bar.firstChild.style.width = `${Math.min(100, 100 * share).toFixed(1)}%`;
  return bar;
}

function capital(word) {
  return word.slice(0, 1).toUpperCase() + word.slice(1);
}

// Parts of a step are often shorter than a second.
function short(seconds) {
  return seconds < 1 ? `${Number((1000 * seconds).toPrecision(3))} ms` : duration(seconds);
}
