// A table of any length of which only the visible rows exist. Rows come in pages from the server, as they are needed.

import { fill, h } from "./dom.js";

const PAGE = 100;
const MARGIN = 12;
const KEPT_PAGES = 30;

// load(offset, limit) → {total, runs}; columns: [{key, title, cell(row), numeric, sortable, width}]
export class VirtualTable {
  constructor({
    label,
    columns,
    load,
    rowHeight = 34,
    onOpen = undefined,
    onSelect = undefined,
    sort = undefined,
    onSort = undefined,
    onTotal = undefined,
    onError = undefined,
    before = undefined,
  }) {
    this.label = label;
    this.columns = columns;
    this.load = load;
    this.rowHeight = rowHeight;
    this.onOpen = onOpen;
    this.onSelect = onSelect;
    this.sort = sort;
    this.onSort = onSort;
    this.onTotal = onTotal;
    this.onError = onError;
    this.before = before;
    this.pages = new Map();
    this.asked = new Map();
    this.total = 0;
    this.active = 0;
    this.selected = new Set();
    this.generation = 0;
    this.head = h("thead");
    this.body = h("tbody");
    this.table = h("table.grid", { "aria-label": label }, this.head, this.body);
    this.element = h(
      "div.scroll",
      { tabindex: "0", role: "region", "aria-label": label, onscroll: () => this.later() },
      this.table,
    );
    this.observer = new ResizeObserver(() => this.later());
    this.observer.observe(this.element);
    this.drawHead();
  }

  destroy() {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
    this.generation += 1;
  }

  // Forget all rows and read those that are visible.
  async reload({ keepScroll = false } = {}) {
    this.generation += 1;
    this.asked.clear();
    if (!keepScroll) this.element.scrollTop = 0;
    const first = keepScroll ? this.visible()[0] : 0;
    const page = Math.floor(first / PAGE);
    await this.fetch(page, true);
    this.draw();
  }

  setColumns(columns) {
    this.columns = columns;
    this.drawHead();
  }

  setSort(sort) {
    this.sort = sort;
    this.drawHead();
  }

  row(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  // Replace rows that changed, wherever they are shown; returns how many of them are known here.
  update(rows) {
    const changed = new Map(rows.map((row) => [row.id, row]));
    let known = 0;
    for (const page of this.pages.values()) {
      page.forEach((row, index) => {
        const next = changed.get(row.id);
        if (!next) return;
        // A changed row comes without the columns that this table asked for beside the usual ones.
        page[index] = { ...row, ...next, values: { ...row.values, ...next.values } };
        known += 1;
      });
    }
    if (known) this.draw();
    return known;
  }

  async fetch(page, forget = false) {
    if (this.asked.has(page)) return this.asked.get(page);
    const generation = this.generation;
    const question = this.load(page * PAGE, PAGE)
      .then((answer) => {
        if (generation !== this.generation) return;
        if (forget) this.pages.clear();
        this.pages.set(page, answer.runs);
        if (this.pages.size > KEPT_PAGES) this.forgetFarFrom(page);
        this.total = answer.total;
        this.active = Math.min(this.active, Math.max(0, this.total - 1));
        this.onTotal?.(answer);
        this.draw();
      })
      .catch((error) => {
        if (generation !== this.generation || error.name === "AbortError") return;
        this.asked.delete(page);
        this.onError?.(error);
      });
    this.asked.set(page, question);
    return question;
  }

  forgetFarFrom(page) {
    const farthest = [...this.pages.keys()].sort((a, b) => Math.abs(b - page) - Math.abs(a - page))[0];
    this.pages.delete(farthest);
    this.asked.delete(farthest);
  }

  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  visible() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / this.rowHeight) - MARGIN);
    const shown = Math.ceil((this.element.clientHeight || innerHeight) / this.rowHeight) + 2 * MARGIN;
    return [first, Math.min(this.total, first + shown)];
  }

  draw() {
    const [first, last] = this.visible();
    const active = /** @type {HTMLElement | null} */ (document.activeElement);
    const focused = /** @type {HTMLElement | null} */ (active?.closest?.("tr"))?.dataset.index;
    const control = active?.dataset?.control;
    const rows = [];
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(first, last - 1) / PAGE); page += 1) {
      if (!this.pages.has(page) && this.total) this.fetch(page);
    }
    for (let index = first; index < last; index += 1) rows.push(this.drawRow(index));
    fill(this.body, this.gap(first), rows, this.gap(this.total - last));
    this.table.setAttribute("aria-rowcount", this.total + 1);
    if (focused !== undefined && control) {
      this.body
        .querySelector(`tr[data-index="${focused}"] [data-control="${control}"]`)
        ?.focus({ preventScroll: true });
    }
  }

  gap(rows) {
    if (rows <= 0) return null;
    const cell = h("td", { colspan: this.columns.length });
    cell.style.height = `${rows * this.rowHeight}px`;
    return h("tr.gap", { "aria-hidden": "true" }, cell);
  }

  drawRow(index) {
    const row = this.row(index);
    const line = h("tr", { "aria-rowindex": index + 2, "data-index": index });
    line.style.height = `${this.rowHeight}px`;
    if (!row) {
      line.append(h("td", { colspan: this.columns.length }, h("div.bone.bone-line")));
      return line;
    }
    if (index === this.active) line.classList.add("active");
    if (this.selected.has(row.id)) line.classList.add("selected");
    const previous = this.row(index - 1);
    for (const column of this.columns) line.append(this.drawCell(column, row, previous));
    line.addEventListener("click", (event) => {
      this.active = index;
      if (!event.target.closest("a, button, input, label")) this.onOpen?.(row);
    });
    return line;
  }

  drawCell(column, row, previous) {
    const classes = [
      column.numeric && "numeric",
      column.sticky && "sticky",
      column.key && `cell-${column.key.replaceAll(/[^a-z_]/g, "-")}`,
    ];
    const cell = h(column.heads ? "th" : "td", {
      class: classes.filter(Boolean).join(" "),
      scope: column.heads ? "row" : null,
    });
    return fill(cell, column.cell(row, previous));
  }

  drawHead() {
    fill(
      this.head,
      h(
        "tr",
        { "aria-rowindex": 1 },
        this.columns.map((column) => {
          const sorted = this.sort?.field === column.sort && column.sort ? this.sort.direction : null;
          const order = sorted && (sorted === "asc" ? "ascending" : "descending");
          const classes = [column.numeric && "numeric", column.sticky && "sticky"].filter(Boolean).join(" ");
          const title = column.sort
            ? h(
                "button.sort",
                { type: "button", onclick: () => this.onSort?.(column.sort, column) },
                column.title,
                sorted && h("span", { "aria-hidden": "true" }, sorted === "asc" ? " ↑" : " ↓"),
              )
            : column.title;
          const cell = h("th", { scope: "col", class: classes, "aria-sort": order }, title);
          if (column.hint) cell.title = column.hint;
          return cell;
        }),
      ),
    );
  }

  // Move the active row for the keyboard.
  move(by) {
    this.active = Math.max(0, Math.min(this.total - 1, this.active + by));
    const top = this.active * this.rowHeight;
    const { scrollTop, clientHeight } = this.element;
    const head = this.head.offsetHeight;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + this.rowHeight + head > scrollTop + clientHeight)
      this.element.scrollTop = top + this.rowHeight + head - clientHeight;
    this.draw();
  }

  toggle(row = this.row(this.active)) {
    if (!row) return;
    if (this.selected.has(row.id)) this.selected.delete(row.id);
    else this.selected.add(row.id);
    this.draw();
    this.onSelect?.(this.selected);
  }
}

// A short table that is all there: rows of cells, of which the first names the row.
export function simpleTable(label, titles, rows, { numeric = [], className = "" } = {}) {
  const side = (index) => (numeric.includes(index) ? "numeric" : null);
  return h(
    "div.scroll-x",
    { tabindex: "0", role: "region", "aria-label": label },
    h(
      "table.plain",
      { "aria-label": label, class: `plain ${className}` },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          titles.map((title, index) => h("th", { scope: "col", class: side(index) }, title)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((cell, index) =>
              index === 0
                ? h("th", { scope: "row", class: side(index) }, cell)
                : h("td", { class: side(index), "data-title": titles[index] }, cell),
            ),
          ),
        ),
      ),
    ),
  );
}
