// The documents behind a step: the rows of its batch, read again from the data with the recipe, the seed and the step.

import { get, id as quoted } from "../lib/api.js";
import { debounce, download, field, fill, h } from "../lib/dom.js";
import { count, csv, whole } from "../lib/format.js";
import { route, setParams } from "../lib/router.js";
import { empty, failure, skeleton, warning } from "../lib/states.js";

export class Documents {
  constructor(place, view) {
    this.place = place;
    this.view = view;
    this.found = "";
    this.last = Math.max(1, view.run.progress?.step ?? view.run.summary?.step ?? 1);
    const asked = Number(route().params.get("step"));
    this.step = Number.isInteger(asked) && asked > 0 ? asked : this.last;
    this.soon = debounce(() => this.load(), 400);
    this.list = h("div");
    fill(place, this.bar(), this.list);
    this.offer();
  }

  bar() {
    this.box = h("input.step-box", {
      type: "number",
      min: 1,
      step: 1,
      value: this.step,
      oninput: () => this.box.value && this.at(Number(this.box.value), this.soon),
    });
    const by = (text, label, change) =>
      h(
        "button.small",
        { type: "button", "aria-label": label, title: label, onclick: () => this.at(this.step + change, this.soon) },
        text,
      );
    this.search = h("input", {
      type: "search",
      placeholder: "text",
      "data-search": "yes",
      oninput: debounce(() => this.draw(), 150),
    });
    return h(
      "div.toolbar",
      {},
      h(
        "div.step-choice",
        {},
        field("Step", this.box, { inline: true }),
        by("←", "The step before", -1),
        by("→", "The step after", 1),
      ),
      h("span.dim", {}, `of ${whole(this.last)} done`),
      field("Find", this.search, { inline: true }),
    );
  }

  // Reading opens files that the run names, so an address alone, which anyone can make, does not begin it.
  offer() {
    const read = h("button", { type: "button", onclick: () => this.load() }, "Read the documents");
    fill(
      this.list,
      h("p", {}, read),
      h(
        "p.dim",
        {},
        "They are made again from the data that the recipe of this run names, as far as it lies in the runs folder, among Shardyard's own data, or in a folder that --data-dir of the dashboard names.",
      ),
    );
  }

  at(step, then) {
    if (!Number.isFinite(step)) return;
    this.step = Math.max(1, Math.round(step));
    if (Number(this.box.value) !== this.step) this.box.value = this.step;
    setParams({ step: this.step });
    then();
  }

  async load() {
    const { step } = this;
    fill(
      this.list,
      h(
        "p.dim",
        { role: "status" },
        `Making the rows of step ${whole(step)} again from the data. This takes some seconds.`,
      ),
      skeleton(6),
    );
    this.abort?.abort();
    this.abort = new AbortController();
    try {
      this.answer = await get(`/api/runs/${quoted(this.view.id)}/documents`, { step }, this.abort.signal);
    } catch (error) {
      if (error.name === "AbortError" || step !== this.step) return;
      this.answer = null;
      fill(
        this.list,
        failure(
          "The documents cannot be shown",
          error.status === 404 ? "This server cannot read the data of a run." : error.message,
        ),
      );
      return;
    }
    if (step === this.step) this.draw();
  }

  draw() {
    if (!this.answer) return;
    const { step, rows, documents = [], problem } = this.answer;
    if (!documents.length) {
      fill(
        this.list,
        problem
          ? failure("The documents cannot be shown", problem)
          : empty("No documents", `The batch of step ${whole(step)} has no rows that can be shown.`),
      );
      return;
    }
    const wanted = this.search.value.trim().toLowerCase();
    const shown = documents.filter((one) => `${one.source} ${one.document} ${one.text}`.toLowerCase().includes(wanted));
    const tokens = documents.reduce((sum, one) => sum + (one.tokens ?? 0), 0);
    const seen = new Set(documents.map((one) => one.row)).size;
    const told = [
      rows ? `${seen < rows ? `the first ${seen} of ` : ""}${rows} rows` : `${seen} rows`,
      `${documents.length} documents`,
      tokens && `${count(tokens)} tokens`,
    ]
      .filter(Boolean)
      .join(", ");
    fill(
      this.list,
      problem && warning(problem),
      h(
        "section.panel",
        {},
        h(
          "div.head",
          {},
          h("h2", {}, `Step ${whole(step)}`),
          h("span.count", {}, told),
          h("div.grow"),
          h(
            "button.ghost.tiny",
            { type: "button", "aria-label": "Documents: table", onclick: () => this.table(documents) },
            "CSV",
          ),
        ),
        shown.length
          ? h(
              "ol.documents",
              {},
              shown.map((one, index) => item(one, shown[index - 1])),
            )
          : h("p.dim", {}, "No document has this text."),
      ),
    );
  }

  table(documents) {
    download(
      `documents-step-${this.step}.csv`,
      csv([
        ["row", "rank", "source", "file", "file row", "sha256", "document", "tokens", "text"],
        ...documents.map((one) => [
          one.row,
          one.rank,
          one.source,
          one.file,
          one.file_row,
          one.sha256,
          one.document,
          one.tokens,
          one.text,
        ]),
      ]),
    );
  }

  destroy() {
    this.abort?.abort();
    this.soon.cancel();
  }
}

// `train.jsonl, row 61`, as messages name it.
function place({ file, file_row: row, source }) {
  const name = String(file ?? "")
    .split("/")
    .pop();
  return name && name !== source ? `${name}, row ${row}` : row && `row ${row}`;
}

// The row and its rank stand at the first of its documents.
function item(one, before) {
  const first = before?.row !== one.row;
  return h(
    "li",
    { class: first ? "first" : "" },
    h("div.row", {}, first && [h("strong", {}, `Row ${one.row}`), h("span.dim", {}, `rank ${one.rank}`)]),
    h(
      "div.body",
      {},
      h(
        "p.from",
        {},
        h("strong", {}, one.source),
        h(
          "span.dim",
          {},
          [place(one), String(one.document), Number.isFinite(one.tokens) ? `${whole(one.tokens)} tokens` : null]
            .filter(Boolean)
            .join(" · "),
        ),
      ),
      text(String(one.text ?? "")),
    ),
  );
}

const SHORT = 400;

function text(content) {
  const body = h("p.text", {}, content.slice(0, SHORT), content.length > SHORT ? "…" : "");
  if (content.length <= SHORT) return body;
  const more = h(
    "button.ghost.tiny",
    {
      type: "button",
      "aria-expanded": "false",
      onclick: () => {
        const open = more.getAttribute("aria-expanded") === "false";
        more.setAttribute("aria-expanded", String(open));
        fill(more, open ? "Less" : "More");
        fill(body, open ? content : `${content.slice(0, SHORT)}…`);
      },
    },
    "More",
  );
  return [body, more];
}
