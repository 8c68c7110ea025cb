// Keyboard shortcuts and the sheet that lists them. A view registers its own for as long as it is shown.

import { dialog, h } from "./dom.js";

const layers = [];
let pending = "";
let pendingTimer = 0;

// shortcuts: [[keys, what, action]], keys such as "j" or "g r". Returns what takes them back.
export function register(title, shortcuts) {
  const layer = { title, shortcuts };
  layers.push(layer);
  return () => layers.splice(layers.indexOf(layer), 1);
}

export function listen() {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (typing(event.target)) {
      if (event.key === "Escape") /** @type {HTMLElement} */ (event.target).blur();
      return;
    }
    const keys = pending ? `${pending} ${event.key}` : event.key;
    const action = find(keys);
    clearTimeout(pendingTimer);
    pending = "";
    if (action) {
      event.preventDefault();
      action(event);
    } else if (layers.some((layer) => layer.shortcuts.some(([known]) => known.startsWith(`${keys} `)))) {
      pending = keys;
      pendingTimer = setTimeout(() => (pending = ""), 1200);
    }
  });
}

function typing(target) {
  if (target.matches?.("input[type=checkbox], input[type=radio], input[type=range]")) return false;
  return target.matches?.("input, textarea, select, [contenteditable]");
}

function find(keys) {
  for (const layer of [...layers].reverse()) {
    const found = layer.shortcuts.find(([known]) => known === keys);
    if (found) return found[2];
  }
  return null;
}

export function help() {
  const close = h("button", { type: "button", onclick: () => box.close() }, "Close");
  const groups = layers.map((layer) =>
    h(
      "section",
      {},
      h("h3", {}, layer.title),
      h(
        "dl.keys",
        {},
        layer.shortcuts.map(([keys, what]) => [
          h(
            "dt",
            {},
            keys.split(" ").map((key) => h("kbd", {}, key)),
          ),
          h("dd", {}, what),
        ]),
      ),
    ),
  );
  const box = dialog("Keyboard shortcuts", h("div.sheet", {}, groups), [close]);
}
