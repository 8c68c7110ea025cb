// What is shown when there is nothing to show: while loading, when there is nothing yet, when something is wrong.

import { command, h, prose, shell } from "./dom.js";

export const STATES = {
  running: "running",
  finished: "finished",
  failed: "failed",
  interrupted: "interrupted",
  preempted: "preempted",
  pending: "pending",
  waiting: "waiting",
  lost: "lost",
  stopped: "stopped",
  damaged: "damaged",
  unknown: "unknown",
};

// The state of a run or job: a dot, and always the word beside it.
export function badge(state) {
  const known = STATES[state] ?? "unknown";
  return h(
    "span.badge",
    { class: `badge state-${known}` },
    h("span.dot", { "aria-hidden": "true" }),
    String(state ?? "unknown"),
  );
}

export function skeleton(lines = 6, kind = "line") {
  const parts = Array.from({ length: lines }, () => h("div", { class: `bone bone-${kind}` }));
  return h("div.skeleton", { role: "status", "aria-label": "Loading" }, parts);
}

export function empty(title, text, ...more) {
  return h("div.notice-box", {}, h("h2", {}, title), text && h("p", {}, prose(text)), more);
}

export function failure(title, text, ...more) {
  return h("div.notice-box.wrong", { role: "alert" }, h("h2", {}, title), h("p", {}, prose(text)), more);
}

export function noRuns(folder) {
  return empty(
    "No runs yet",
    `Nothing has been launched into ${folder}. This trains a small model on two CPU cores within minutes and appears here as it starts:`,
    command(`shardyard launch gpt/quickstart --runs-dir ${shell(folder)}`),
    h("p.dim", {}, "Runs elsewhere? Start the dashboard with --runs-dir, or set SHARDYARD_RUNS."),
  );
}

export function warning(text) {
  return h("div.warning", { role: "note" }, prose(text));
}
