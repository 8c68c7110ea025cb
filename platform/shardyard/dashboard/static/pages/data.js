// The data of a recipe before a launch: what was recognised, its first rows with what is trained, lengths and speed.

import { post } from "../lib/api.js";
import { command, fill, h, select } from "../lib/dom.js";
import { count, whole } from "../lib/format.js";
import { link, setParams } from "../lib/router.js";
import { failure, skeleton } from "../lib/states.js";

export const title = "Data";

const ROWS = [3, 6, 12, 16];
// An address alone, which anyone can make, does not begin to read: a click does, here or on the page before.
let asked = "";

// To be called by the button of a page that leads here.
export function begin(recipe, overrides) {
  asked = `${recipe}\n${overrides}`;
  location.hash = link(["data"], { recipe, set: overrides });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

class DataView {
  constructor(root, recipe, overrides, rows) {
    this.recipe = recipe;
    this.overrides = overrides;
    this.rows = rows;
    this.body = h("div");
    this.again = h("button", { type: "button", onclick: () => this.load(true) }, "Read the data");
    fill(
      root,
      h(
        "div.head",
        {},
        h("h1", {}, "Data of ", h("code", {}, recipe)),
        h("div.grow"),
        h("a.button", { href: link(["submit"], { recipe, set: overrides }) }, "Back to the recipe"),
      ),
      h(
        "div.toolbar",
        {},
        this.again,
        h(
          "label.field.inline",
          {},
          h("span.label", {}, "Rows shown"),
          select(
            ROWS.map((one) => [String(one), String(one)]),
            String(rows),
            (value) => {
              this.rows = Number(value);
              setParams({ rows: this.rows });
              if (this.found) this.load(false);
            },
            { "aria-label": "Rows shown" },
          ),
        ),
      ),
      this.body,
    );
    if (asked === `${recipe}\n${overrides}`) this.load(false);
    else
      fill(
        this.body,
        h(
          "p.dim",
          {},
          "The first rows are made as the training would make them: from Shardyard's own data, the runs folder, and folders that --data-dir of the dashboard names.",
        ),
      );
    asked = "";
  }

  lines() {
    return this.overrides
      .split("\n")
      .map((line) => line.trim())
      .filter((line) => line && !line.startsWith("#"));
  }

  async load(again) {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    this.again.disabled = true;
    fill(this.body, h("p.dim", { role: "status" }, "Making the first rows. This takes some seconds."), skeleton(8));
    try {
      const found = await post("/api/recipes/data", {
        name: this.recipe,
        overrides: this.lines(),
        rows: this.rows,
        again: again && Boolean(this.found),
      });
      if (turn !== this.turn) return;
      this.found = found;
      fill(this.body, tiles(found), sources(found), lengths(found), rows(found), inTerminal(found));
    } catch (error) {
      if (turn !== this.turn) return;
      fill(this.body, failure("The data cannot be shown", error.message));
    }
    this.again.disabled = false;
    fill(this.again, "Read again");
  }

  destroy() {
    this.turn = -1;
  }
}

function tiles({ filled, trained, speed, lengths: found }) {
  const facts = [
    ["Positions filled", filled === null ? null : percent(filled)],
    ["Tokens trained", trained === null ? null : percent(trained)],
    ["Tokens a second", speed.tokens_per_second ? count(Math.round(speed.tokens_per_second)) : null],
    ["Rows a second", count(Math.round(speed.rows_per_second))],
    ["First row after", `${speed.first_seconds.toFixed(2)} s`],
    ["Examples measured", whole(Object.values(found).reduce((sum, one) => sum + one, 0))],
  ];
  return h(
    "dl.tiles",
    {},
    facts
      .filter(([, value]) => value !== null)
      .map(([name, value]) => h("div.tile", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

function sources({ sources: found }) {
  const cell = (text) => h("td.numeric", {}, text);
  return h(
    "section.panel",
    {},
    h("h2", {}, "Sources"),
    h(
      "div.scroll",
      { tabindex: "0", role: "region", "aria-label": "Sources" },
      h(
        "table.plain",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Source", "Recognised", "Columns", "Mixture", "Rows", "Documents", "Tokens", "In the run"].map(
              (name, index) => h(index > 3 ? "th.numeric" : "th", { scope: "col" }, name),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          found.map((one) => {
            const bar = h("span.share-bar", { "aria-hidden": "true" }, h("span"));
            bar.firstChild.style.width = percent(one.share).replace(" ", "");
            return h(
              "tr",
              {},
              h("th", { scope: "row" }, one.name, problems(one)),
              h("td", {}, one.recognised),
              h(
                "td",
                {},
                Object.entries(one.columns).map(([role, column]) =>
                  h("div", {}, role === column ? column : [role, ": ", h("code", {}, column)]),
                ),
                one.others.length > 0 && h("div.dim", {}, `not read: ${one.others.join(", ")}`),
              ),
              h("td", {}, percent(one.share), bar),
              cell(whole(one.rows)),
              cell(whole(one.documents)),
              cell(one.tokens ? whole(one.tokens) : "–"),
              cell(inRun(one)),
            );
          }),
        ),
      ),
    ),
  );
}

// What the whole run will take of a source, as planned.
function inRun({ run_tokens: tokens, run_epochs: epochs }) {
  if (tokens === null) return "–";
  const passes = epochs !== null && h("div.dim", {}, `about ${Number(epochs.toPrecision(3))} passes`);
  return [`${count(tokens)} tokens`, passes];
}

// What was left out of a source, below its name.
function problems({ left_out: out }) {
  const number = out.unusable + out.without_target;
  return [
    number > 0 && h("div.warn-text", {}, `${whole(number)} rows left out: ${out.named.join("; ")}`),
    Object.entries(out.filtered ?? {}).map(([reason, many]) =>
      h("div.dim", {}, `removed by filters: ${whole(many)} (${reason})`),
    ),
  ];
}

function lengths({ lengths: found }) {
  const bounds = Object.entries(found).map(([bound, number]) => [Number(bound), number]);
  const most = Math.max(...bounds.map(([, number]) => number), 1);
  if (!bounds.length) return null;
  return h(
    "section.panel",
    {},
    h("h2", {}, "Lengths"),
    h(
      "ul.lengths",
      {},
      bounds.map(([bound, number]) => {
        const bar = h("span.bar", { "aria-hidden": "true" });
        bar.style.width = `${(100 * number) / most}%`;
        return h(
          "li",
          {},
          h("span.bound", {}, `≤ ${whole(bound)} tokens`),
          h("span.room", {}, bar),
          h("span.many", {}, whole(number)),
        );
      }),
    ),
  );
}

function rows({ rows: found }) {
  const all = found.flatMap((row) => row.spans);
  const legend = [
    all.some((span) => span.trained) && h("li", {}, h("mark.trained", {}, "trained")),
    all.some((span) => !span.trained) && h("li", {}, h("span.read", {}, "only read")),
    all.some((span) => span.document) &&
      h("li", {}, h("span.boundary", { "aria-hidden": "true" }), "a document begins"),
  ];
  return h(
    "section.panel",
    {},
    h("div.head", {}, h("h2", {}, "Rows"), h("div.grow"), legend.some(Boolean) && h("ul.data-legend", {}, legend)),
    h("ol.data-rows", {}, found.map(shownRow)),
  );
}

function shownRow(row, index) {
  return h(
    "li",
    {},
    h(
      "p.from",
      {},
      h("strong", {}, `Row ${index + 1}`),
      h("span", {}, row.source),
      h("span.dim", {}, [row.tokens ? `${whole(row.tokens)} tokens` : null, row.beside].filter(Boolean).join(" · ")),
    ),
    row.pictures.length > 0 &&
      h(
        "div.pictures",
        {},
        row.pictures.map((url, place) => h("img", { src: url, alt: `Picture ${place + 1} of row ${index + 1}` })),
      ),
    row.sounds.map((url) =>
      h("audio", { src: url, controls: true, preload: "metadata", "aria-label": `Recording of row ${index + 1}` }),
    ),
    row.spans.length > 0 &&
      h("p.text", { tabindex: "0", role: "region", "aria-label": `Text of row ${index + 1}` }, spans(row.spans)),
  );
}

function spans(found) {
  return found.map((span, index) => {
    const begins = index > 0 && span.document !== found[index - 1].document;
    return [
      begins && h("span.boundary", { role: "img", "aria-label": "A document begins" }),
      span.trained ? h("mark.trained", {}, span.text) : h("span.read", {}, span.text),
    ];
  });
}

function inTerminal({ command: text }) {
  return h("section.panel", {}, h("h2", {}, "In a terminal"), command(text));
}

export async function mount(root, { params }) {
  const recipe = params.get("recipe");
  if (!recipe) {
    fill(root, failure("No recipe", "Choose one on the page Submit.", h("a.button", { href: "#/submit" }, "Submit")));
    return {};
  }
  const wanted = Number(params.get("rows"));
  return new DataView(root, recipe, params.get("set") ?? "", ROWS.includes(wanted) ? wanted : 6);
}
