// All runs as a table: searched, sorted and grouped by the server, live, with any number of them chosen to compare.

import { get, Stream, who } from "../lib/api.js";
import { chooseColumns, columnsFrom, defaultColumns } from "./columns.js";
import { announce, debounce, field, fill, h, select, throttle } from "../lib/dom.js";
import { plain, whole } from "../lib/format.js";
import { register } from "../lib/keys.js";
import { go, link, setParams } from "../lib/router.js";
import { failure, noRuns, skeleton, warning } from "../lib/states.js";
import { VirtualTable } from "../lib/table.js";

export const title = "Runs";

const QUICK = [
  ["", "All"],
  ["state = running", "Running"],
  ["state = failed or state = lost", "Failed"],
  ["state = finished", "Finished"],
];
const SORTS = [
  ["created", "Newest first"],
  ["name", "Name"],
  ["state", "State"],
  ["step", "Step"],
  ["loss", "Training loss"],
  ["eval.loss", "Evaluation loss"],
];

class RunsView {
  constructor(root, params) {
    this.root = root;
    this.query = params.get("query") ?? "";
    this.group = params.get("group") ?? "";
    this.columns = columnsFrom(params.get("columns"));
    this.sort = readSort(params.get("sort"));
    this.available = [];
    this.frame();
    if (params.get("chosen")) for (const id of params.get("chosen").split(",")) this.table.selected.add(id);
    this.drawSelection();
    this.unregister = register("Runs", [
      ["/", "Search", () => this.search.focus()],
      ["j", "Next run", () => this.table.move(1)],
      ["k", "Previous run", () => this.table.move(-1)],
      ["ArrowDown", "Next run", () => this.table.move(1)],
      ["ArrowUp", "Previous run", () => this.table.move(-1)],
      ["x", "Choose the run, or not", () => this.table.toggle()],
      ["Enter", "Open the run", (event) => this.enter(event)],
      ["c", "Compare the chosen runs", () => this.compare()],
      ["Escape", "Choose none", () => this.choose([])],
    ]);
    this.moreRuns = throttle(() => this.table.reload({ keepScroll: true }), 1500);
    this.stream = new Stream(() => ({}), { runs: (event) => this.live(event) });
  }

  frame() {
    this.search = h("input.query", {
      type: "search",
      value: this.query,
      spellcheck: "false",
      autocomplete: "off",
      "data-search": "yes",
      "aria-describedby": "query-help query-error",
      placeholder: 'state = running and eval.loss < 3 and name ~ "gpt"',
      oninput: debounce(() => this.ask({ query: this.search.value.trim() }), 250),
    });
    this.error = h("div.query-error", { id: "query-error", role: "alert", hidden: true });
    this.quick = h("div.chips", { role: "group", "aria-label": "Common searches" });
    this.total = h("span.count", { role: "status" });
    this.problems = h("div");
    this.bar = h("div.selection", { hidden: true });
    this.place = h("div.table-place");
    this.sortBar = h("div.sort-bar");
    this.table = new VirtualTable({
      label: "Runs",
      columns: this.cells(),
      rowHeight: 34,
      sort: this.sort,
      load: (offset, limit) => this.load(offset, limit),
      onOpen: (row) => go(["run", row.id]),
      onSelect: () => this.drawSelection(),
      onSort: (name) => this.sortBy(name),
      onTotal: (answer) => this.told(answer),
      onError: (error) => this.failed(error),
    });
    fill(
      this.root,
      h("div.head", {}, h("h1", {}, "Runs"), this.total, h("div.grow"), this.quick),
      h(
        "div.toolbar.runs-bar",
        {},
        field("Search", this.search),
        this.sortBar,
        field(
          "Group",
          select(
            [
              ["", "none"],
              ["sweep", "sweep"],
              ["recipe", "recipe"],
              ["state", "state"],
            ],
            this.group,
            (group) => this.ask({ group }),
          ),
          { inline: true },
        ),
        h(
          "button.small",
          {
            type: "button",
            onclick: () => chooseColumns(this.available, this.columns, (columns) => this.setColumns(columns)),
          },
          "Columns…",
        ),
      ),
      this.error,
      h(
        "p.hint",
        { id: "query-help" },
        "Fields: state, name, tag, group, step, age, loss, eval.*, train.*, perf.*, recipe.*. Operators: = != < <= > >= ~ in, and, or, not, brackets.",
      ),
      this.problems,
      this.bar,
      this.place,
    );
    fill(this.place, skeleton(12));
    this.drawQuick();
    this.drawSort();
    this.table.reload();
  }

  cells() {
    return defaultColumns({
      chosen: (row) => this.table.selected.has(row.id),
      choose: (row) => this.table.toggle(row),
      chooseAll: () => this.chooseLoaded(),
      group: this.group,
      extra: this.columns,
    });
  }

  load(offset, limit) {
    const server = this.columns.filter((name) => name.includes("."));
    return get("/api/runs", {
      query: this.query,
      sort: writeSort(this.sort),
      columns: server,
      offset,
      limit,
      group: this.group,
    });
  }

  ask(changes) {
    Object.assign(this, changes);
    setParams({
      query: this.query,
      group: this.group,
      sort: isUsual(this.sort) ? null : writeSort(this.sort),
      columns: this.columns.join(","),
    });
    this.drawQuick();
    this.drawSort();
    this.table.setColumns(this.cells());
    this.table.setSort(this.sort);
    this.table.reload();
  }

  setColumns(columns) {
    this.ask({ columns });
  }

  sortBy(name) {
    const same = this.sort.field === name;
    const first = ["created", "step"].includes(name) ? "desc" : "asc";
    this.ask({
      sort: {
        field: name,
        how: same ? this.sort.how : "last",
        direction: same ? (this.sort.direction === "asc" ? "desc" : "asc") : first,
      },
    });
  }

  told(answer) {
    this.available = answer.columns ?? this.available;
    this.error.hidden = true;
    this.search.removeAttribute("aria-invalid");
    this.total.textContent = `${whole(answer.total)} ${answer.total === 1 ? "run" : "runs"}${answer.unread ? `, ${whole(answer.unread)} still being read` : ""}`;
    if (answer.unread) this.moreRuns?.();
    announce(`${answer.total} runs`);
    fill(this.problems, (answer.problems ?? []).slice(0, 3).map(warning));
    if (answer.total || this.query) {
      if (this.table.element.parentNode !== this.place) fill(this.place, this.table.element);
      if (!answer.total)
        fill(
          this.place,
          h(
            "div.notice-box",
            {},
            h("h2", {}, "No run matches"),
            h("p", {}, "Change the search, or show all runs."),
            h("button", { type: "button", onclick: () => this.searchFor("") }, "Show all"),
          ),
        );
    } else if (!answer.unread) {
      who().then((session) => fill(this.place, noRuns(session.runs_dir)));
    }
  }

  failed(error) {
    if (error.position !== undefined) {
      this.error.hidden = false;
      this.search.setAttribute("aria-invalid", "true");
      if (!this.table.element.isConnected)
        fill(this.place, h("p.dim.unread", {}, "Runs are listed as soon as the search can be read."));
      fill(
        this.error,
        pointed(this.query, error),
        error.nearest &&
          h("button.small", { type: "button", onclick: () => this.repair(error) }, `Use ${error.nearest}`),
      );
      return;
    }
    fill(
      this.place,
      failure(
        "The runs cannot be listed",
        error.message,
        h("button", { type: "button", onclick: () => this.table.reload() }, "Try again"),
      ),
    );
  }

  repair(error) {
    const rest = this.query.slice(error.position).replace(/^[A-Za-z0-9_.\-/]+/, "");
    this.searchFor(this.query.slice(0, error.position) + error.nearest + rest);
  }

  searchFor(query) {
    this.search.value = query;
    this.ask({ query });
  }

  live(event) {
    const known = this.table.update(event.runs ?? []);
    if (known < (event.runs?.length ?? 0) || event.gone?.length) this.moreRuns();
  }

  drawQuick() {
    fill(
      this.quick,
      QUICK.map(([query, text]) =>
        h(
          "button.chip",
          { type: "button", "aria-pressed": String(this.query === query), onclick: () => this.searchFor(query) },
          text,
        ),
      ),
    );
  }

  drawSort() {
    const extra = this.columns
      .filter((name) => name.includes(".") && !SORTS.some(([known]) => known === name))
      .map((name) => [name, name]);
    const metric = /^(eval|train|perf|memory|moe)\.|^loss$/.test(this.sort.field);
    fill(
      this.sortBar,
      field(
        "Sort",
        select([...SORTS, ...extra], this.sort.field, (name) => this.sortBy(name)),
        { inline: true },
      ),
      metric &&
        select(
          [
            ["last", "last"],
            ["best", "best"],
            ["smoothed", "smoothed"],
          ],
          this.sort.how,
          (how) => this.ask({ sort: { ...this.sort, how } }),
          { "aria-label": "Value to sort by" },
        ),
      h(
        "button.small",
        {
          type: "button",
          "aria-label":
            this.sort.direction === "asc" ? "Ascending; change to descending" : "Descending; change to ascending",
          onclick: () => this.sortBy(this.sort.field),
        },
        this.sort.direction === "asc" ? "↑" : "↓",
      ),
    );
  }

  drawSelection() {
    const ids = [...this.table.selected];
    this.bar.hidden = ids.length === 0;
    setParams({ chosen: ids.join(",") });
    fill(
      this.bar,
      h("strong", {}, `${ids.length} chosen`),
      h("a.button.primary.small", { href: link(["compare"], { runs: ids.join(",") }) }, "Compare"),
      h(
        "a.button.small",
        { href: `/api/report?runs=${ids.map(encodeURIComponent).join(",")}`, download: "" },
        "Report",
      ),
      h("button.ghost.small", { type: "button", onclick: () => this.choose([]) }, "Choose none"),
    );
    announce(ids.length ? `${ids.length} runs chosen` : "No run chosen");
  }

  choose(ids) {
    this.table.selected = new Set(ids);
    this.table.draw();
    this.drawSelection();
  }

  chooseLoaded() {
    const [first, last] = [0, Math.min(this.table.total, 50)];
    const ids = Array.from({ length: last - first }, (_, index) => this.table.row(first + index)?.id).filter(Boolean);
    this.choose(ids.every((id) => this.table.selected.has(id)) ? [] : ids);
  }

  compare() {
    if (this.table.selected.size) go(["compare"], { runs: [...this.table.selected].join(",") });
  }

  enter(event) {
    if (event.target.matches("a, button, input")) event.target.click();
    else if (this.table.row(this.table.active)) go(["run", this.table.row(this.table.active).id]);
  }

  destroy() {
    this.stream.close();
    this.moreRuns.cancel();
    this.table.destroy();
    this.unregister();
  }
}

// The query with a mark under the place where it stops making sense.
function pointed(query, error) {
  const at = Math.max(0, Math.min(error.position ?? query.length, query.length));
  return [
    h("p", {}, error.message[0].toUpperCase() + error.message.slice(1)),
    query && h("pre", { "aria-hidden": "true" }, `${query}\n${" ".repeat(at)}^`),
  ];
}

function readSort(text) {
  const [name = "created", how = "last", direction = "desc"] =
    (text ?? "").split(":").length === 3 ? text.split(":") : [];
  return { field: name, how, direction };
}

function writeSort({ field: name, how, direction }) {
  return plain(`${name}:${how}:${direction}`);
}

function isUsual(sort) {
  return writeSort(sort) === "created:last:desc";
}

export function mount(root, { params }) {
  return new RunsView(root, params);
}
