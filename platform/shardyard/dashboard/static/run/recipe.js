// The recipe of a run: as given, with everything that was derived, why, and where the run comes from.

import { get, id as quoted } from "../lib/api.js";
import { copy, fill, h } from "../lib/dom.js";
import { plain } from "../lib/format.js";
import { failure } from "../lib/states.js";
import { simpleTable } from "../lib/table.js";

export class RecipeTab {
  constructor(place, run) {
    this.place = place;
    this.load(run);
  }

  async load(run) {
    let answer;
    try {
      answer = await get(`/api/runs/${quoted(run)}/recipe`);
    } catch (error) {
      fill(this.place, failure("The recipe cannot be read", error.message));
      return;
    }
    fill(
      this.place,
      h(
        "div.columns",
        {},
        h("div", {}, text("As given", answer.given), text("Resolved, with every default", answer.resolved, false)),
        h("div", {}, derived(answer.derived ?? []), provenance(answer.provenance ?? {})),
      ),
    );
  }

  destroy() {}
}

function text(title, content, open = true) {
  const button = h("button.ghost.small", { type: "button", onclick: () => copy(content ?? "", button) }, "Copy");
  return h(
    "details.panel",
    { open },
    h("summary", {}, h("h2", {}, title)),
    content && h("div.copy-line", {}, button),
    content ? yaml(content) : h("p.dim", {}, "This file is missing from the run folder."),
  );
}

// YAML with its keys and comments set apart, line by line.
export function yaml(content) {
  const lines = content.split("\n").map((line) => {
    const comment = /^\s*#/.test(line);
    const found = comment ? null : line.match(/^(\s*(?:- )?)([\w./-]+)(:)(\s.*|)$/);
    if (comment) return [h("span.comment", {}, line), "\n"];
    if (!found) return [line, "\n"];
    return [found[1], h("span.key", {}, found[2]), found[3], found[4], "\n"];
  });
  return h("pre.code", { tabindex: "0" }, lines);
}

function derived(rows) {
  if (!rows.length) return null;
  return h(
    "section.panel",
    {},
    h("h2", {}, "Derived"),
    simpleTable(
      "Derived values",
      ["What", "Value", "Why"],
      rows.map(([what, value, why]) => [what, plain(value), h("span.dim", {}, why ?? "")]),
      { className: "stacked" },
    ),
  );
}

function provenance(from) {
  const rows = flat(from).filter(([, value]) => value !== "" && value !== "null");
  if (!rows.length) return null;
  return h(
    "section.panel",
    {},
    h("h2", {}, "Provenance"),
    h(
      "dl.facts",
      {},
      rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, h("code", {}, value))]),
    ),
  );
}

function flat(value, prefix = "") {
  if (Array.isArray(value)) return [[prefix, value.map(plain).join(" ")]];
  if (value && typeof value === "object")
    return Object.entries(value).flatMap(([key, item]) => flat(item, prefix ? `${prefix} ${key}` : key));
  return [[prefix, plain(value)]];
}
