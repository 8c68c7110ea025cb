// Logs of the driver and of every rank: live, searchable, with the errors of all of them first.

import { get, id as quoted } from "../lib/api.js";
import { debounce, field, fill, h, select, toggle } from "../lib/dom.js";
import { bytes, whole } from "../lib/format.js";
import { setParams } from "../lib/router.js";

const LINES = 1000;
const MOST_LINES = 5000;
const MOST_SHOWN = 5000;

export class Logs {
  constructor(place, view, params) {
    this.place = place;
    this.view = view;
    this.rank = params.get("rank") ?? "driver";
    this.search = params.get("search") ?? "";
    this.errors = params.get("errors") === "1";
    this.count = LINES;
    this.follow = params.get("follow") !== "0";
    this.box = h("pre.log", { tabindex: "0", role: "log", "aria-label": "Log", "aria-live": "off" });
    this.box.addEventListener("scroll", () => this.scrolled());
    this.size = h("span.dim");
    this.wrong = h("div");
    this.more = h("button.small", { type: "button", hidden: true, onclick: () => this.older() }, "Older lines");
    this.bar = h("div.toolbar");
    this.box.dataset.drawn = "no";
    fill(place, this.bar, this.wrong, this.box);
    this.drawBar();
    this.load();
    this.firstErrors();
  }

  drawBar() {
    const ranks = ["driver", ...(this.view.run.ranks ?? []).map(String)];
    const search = h("input", {
      type: "search",
      value: this.search,
      placeholder: "text",
      "data-search": "yes",
      oninput: debounce(() => this.ask({ search: search.value }), 250),
    });
    this.followBox = toggle("follow", this.follow, (on) => {
      this.follow = on;
      setParams({ follow: on ? null : "0" });
      if (on) this.toEnd();
    });
    fill(
      this.bar,
      field(
        "Log of",
        select(
          ranks.map((rank) => [rank, rank === "driver" ? "driver" : `rank ${rank}`]),
          this.rank,
          (rank) => this.ask({ rank }),
        ),
        { inline: true },
      ),
      field("Find", search, { inline: true }),
      toggle("errors only", this.errors, (errors) => this.ask({ errors })),
      this.followBox,
      this.more,
      this.size,
    );
  }

  ask(changes) {
    Object.assign(this, changes, { count: LINES });
    setParams({
      rank: this.rank === "driver" ? null : this.rank,
      search: this.search,
      errors: this.errors ? "1" : null,
    });
    this.load();
  }

  path() {
    return `/api/runs/${quoted(this.view.id)}/logs`;
  }

  async load() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const answer = await get(this.path(), {
        rank: this.rank,
        cursor: -1,
        search: this.search,
        errors: this.errors ? 1 : null,
        lines: this.count,
      });
      if (turn !== this.turn) return;
      this.cursor = answer.cursor;
      this.show(answer.lines ?? []);
      this.more.hidden = !(this.first > 1 || answer.left_out) || this.count === MOST_LINES;
      this.size.textContent = [
        bytes(answer.total_bytes),
        this.search || this.errors
          ? `${answer.matches ?? 0} lines match`
          : this.first > 1
            ? `from line ${whole(this.first)}`
            : "",
      ]
        .filter(Boolean)
        .join(", ");
      this.view.stream?.restart();
    } catch (error) {
      if (turn !== this.turn) return;
      fill(this.box, error.status === 404 ? "This log is not there: the rank has written nothing." : error.message);
    }
    this.box.dataset.drawn = "yes";
  }

  show(lines) {
    this.first = lines[0]?.[0] ?? 0;
    fill(
      this.box,
      lines.length
        ? lines.map((line) => this.line(line))
        : h("span.dim", {}, this.search || this.errors ? "No line matches." : "Nothing was written yet."),
    );
    if (this.follow) this.toEnd();
  }

  line([number, text, level]) {
    const parts = this.search ? marked(text, this.search) : text;
    return h(
      "span.line",
      { class: `line level-${["error", "warning"].includes(level) ? level : "usual"}` },
      h("span.nr", { "aria-hidden": "true" }, number === null ? "" : String(number)),
      h("span.text", {}, parts, "\n"),
    );
  }

  older() {
    this.count = MOST_LINES;
    this.follow = false;
    this.load();
  }

  // New lines, from the stream.
  lines(event) {
    if (String(event.rank) !== this.rank) return;
    this.cursor = event.cursor ?? this.cursor;
    const wanted = this.search.toLowerCase();
    const fresh = (event.lines ?? []).filter(
      ([, text, level]) => text.toLowerCase().includes(wanted) && (!this.errors || level === "error"),
    );
    if (!fresh.length) return;
    this.box.querySelector(":scope > .dim")?.remove();
    this.box.append(...fresh.map((line) => this.line(line)));
    while (this.box.childElementCount > MOST_SHOWN) this.box.firstElementChild.remove();
    if (this.follow) this.toEnd();
  }

  streamParams() {
    return this.cursor === undefined ? {} : { log: `${this.view.id}:${this.cursor}:${this.rank}` };
  }

  // Errors first: what went wrong on any rank, before a person looks for it.
  async firstErrors() {
    const ranks = ["driver", ...(this.view.run.ranks ?? []).map(String)].slice(0, 9);
    const answers = await Promise.all(
      ranks.map((rank) =>
        get(this.path(), { rank, cursor: -1, errors: 1, lines: 3 }).then(
          (answer) => [rank, answer.lines ?? []],
          () => [rank, []],
        ),
      ),
    );
    const found = answers.filter(([, lines]) => lines.length);
    if (!found.length) return;
    fill(
      this.wrong,
      h(
        "div.first-errors",
        {},
        h("h2", {}, "Errors"),
        h(
          "ul",
          {},
          found.map(([rank, lines]) =>
            h(
              "li",
              {},
              h(
                "button.ghost.small",
                {
                  type: "button",
                  onclick: () => {
                    this.ask({ rank, errors: true });
                    this.drawBar();
                  },
                },
                rank === "driver" ? "driver" : `rank ${rank}`,
              ),
              h("code", {}, lines.at(-1)[1].slice(0, 300)),
            ),
          ),
        ),
      ),
    );
  }

  scrolled() {
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 30;
    if (!atEnd && this.follow && this.moving !== true) {
      this.follow = false;
      this.followBox.querySelector("input").checked = false;
    }
  }

  toEnd() {
    this.moving = true;
    this.box.scrollTop = this.box.scrollHeight;
    requestAnimationFrame(() => requestAnimationFrame(() => (this.moving = false)));
  }

  destroy() {
    this.turn = -1;
  }
}

function marked(text, wanted) {
  const parts = [];
  const lower = text.toLowerCase();
  let at = 0;
  for (let found = lower.indexOf(wanted.toLowerCase()); found >= 0; found = lower.indexOf(wanted.toLowerCase(), at)) {
    parts.push(text.slice(at, found), h("mark", {}, text.slice(found, found + wanted.length)));
    at = found + wanted.length;
  }
  return [...parts, text.slice(at)];
}
