// The columns of the table of runs: those that are always there, and those that a person adds.

import { dialog, fill, h } from "../lib/dom.js";
import { ago, count, duration, fixed, metric, NOTHING, percent, plain, whole } from "../lib/format.js";
import { link } from "../lib/router.js";
import { sparkline } from "../charts/sparkline.js";
import { badge } from "../lib/states.js";

// Shown unless the address says otherwise; a phone has room for the first few.
const USUAL = ["state", "progress", "loss", "eval_loss", "sparkline", "age", "sweep", "tags"];
const USUAL_ON_A_PHONE = ["state", "loss", "sparkline", "progress", "age"];
const BUILT_IN = {
  state: {
    title: "State",
    sort: "state",
    cell: (row) =>
      row.state === "unknown" && row.problem
        ? badge("damaged")
        : [badge(row.state), row.problem && h("span.bad", { title: row.problem }, " damaged")],
  },
  progress: { title: "Step", sort: "step", numeric: true, cell: progress },
  loss: { title: "Loss", sort: "loss", numeric: true, cell: (row) => fixed(row.loss) },
  eval_loss: { title: "Eval loss", sort: "eval.loss", numeric: true, cell: (row) => fixed(row.eval_loss) },
  sparkline: { title: "Loss curve", cell: (row) => sparkline(row.sparkline) },
  age: {
    title: "Created",
    sort: "created",
    cell: (row) => h("span.dim", { title: row.created }, ago(row.age_seconds)),
  },
  recipe: { title: "Recipe", sort: "recipe", cell: (row) => row.recipe ?? NOTHING },
  sweep: {
    title: "Sweep",
    cell: (row) =>
      row.sweep ? h("a", { href: link(["sweeps", row.sweep]), title: row.sweep }, shortId(row.sweep)) : NOTHING,
  },
  tags: { title: "Tags", cell: (row) => (row.tags ?? []).map((tag) => h("span.tag", {}, tag)) },
  world_size: { title: "Ranks", numeric: true, cell: (row) => whole(row.world_size) },
  attempts: { title: "Attempts", numeric: true, cell: (row) => whole(row.attempts) },
};

export function columnsFrom(text) {
  if (text) return text.split(",").filter(Boolean);
  return matchMedia("(max-width: 720px)").matches ? [...USUAL_ON_A_PHONE] : [...USUAL];
}

export function defaultColumns({ chosen, choose, chooseAll, group, extra }) {
  const box = {
    key: "choose",
    title: h(
      "button.ghost.tiny",
      {
        type: "button",
        onclick: chooseAll,
        "aria-label": "Choose the first 50 runs, or none",
        title: "Choose the first 50, or none",
      },
      "☑",
    ),
    cell: (row) =>
      h("input", {
        type: "checkbox",
        checked: chosen(row),
        "data-control": "choose",
        "aria-label": `Choose ${row.name} ${row.id}`,
        onchange: () => choose(row),
      }),
  };
  const name = { key: "name", title: "Run", sort: "name", heads: true, sticky: true, cell: nameCell };
  const grouped = group
    ? [
        {
          key: "group",
          title: group[0].toUpperCase() + group.slice(1),
          cell: (row, previous) => groupCell(row, previous, group),
        },
      ]
    : [];
  return [
    box,
    name,
    ...grouped,
    ...extra.filter((key) => !(group && key === group)).map((key) => ({ key, ...(BUILT_IN[key] ?? added(key)) })),
  ];
}

// Without the time in it: scaling-laws 26b0.
function shortId(id) {
  const found = id.match(/^(.+)-\d{8}-\d{6}-([0-9a-f]{4})$/);
  return found ? `${found[1]} ${found[2]}` : id;
}

function nameCell(row) {
  const rest = row.name && row.id.startsWith(row.name) ? row.id.slice(row.name.length).replace(/^-/, "") : row.id;
  return h(
    "a.run-name",
    { href: link(["run", row.id]), "data-control": "name", title: row.problem || row.id },
    row.name || row.id,
    row.name && h("span.run-id", {}, rest),
  );
}

function groupCell(row, previous, group) {
  const of = (one) => one?.[group] ?? "";
  return previous && of(previous) === of(row)
    ? h("span.unseen", {}, of(row) || "none")
    : h("strong", {}, of(row) || "none");
}

function progress(row) {
  if (!row.total_steps) return whole(row.step);
  const part = Math.min(1, (row.step ?? 0) / row.total_steps);
  const bar = h("span.bar", { "aria-hidden": "true" }, h("span"));
  bar.firstChild.style.width = `${(100 * part).toFixed(1)}%`;
  return h(
    "span.progress",
    { title: `${whole(row.step)} of ${whole(row.total_steps)} steps` },
    bar,
    h("span.steps", {}, whole(row.step)),
  );
}

function added(name) {
  const numeric = !name.startsWith("recipe.") && !["id", "tag"].includes(name);
  const show = (row) => {
    const value = row.values?.[name];
    if (value === undefined || value === null) return NOTHING;
    return typeof value === "number" ? valueText(name, value) : plain(value);
  };
  return { title: name, sort: name, numeric, cell: show };
}

function valueText(name, value) {
  if (name.endsWith("tokens_per_second")) return count(value);
  if (name.endsWith("mfu")) return percent(value);
  if (name.endsWith("_seconds")) return duration(value);
  return metric(name.replaceAll(".", "/"), value);
}

// A sheet to tick columns in: the usual ones, and every metric and field that the runs have.
export function chooseColumns(available, current, apply) {
  const chosen = new Set(current);
  const list = h("div.choices");
  const search = h("input", {
    type: "search",
    placeholder: "Find a column",
    "aria-label": "Find a column",
    oninput: () => draw(),
  });
  const all = [...Object.keys(BUILT_IN), ...available.filter((name) => !(name in BUILT_IN) && name.includes("."))];
  const draw = () => {
    const wanted = search.value.trim().toLowerCase();
    const found = all.filter(
      (name) => name.toLowerCase().includes(wanted) || (BUILT_IN[name]?.title ?? "").toLowerCase().includes(wanted),
    );
    fill(
      list,
      found.slice(0, 300).map((name) => {
        const box = h("input", {
          type: "checkbox",
          checked: chosen.has(name),
          onchange: () => (box.checked ? chosen.add(name) : chosen.delete(name)),
        });
        return h("label.toggle", {}, box, h("span", {}, BUILT_IN[name]?.title ?? name));
      }),
      found.length > 300 && h("p.hint", {}, `${found.length - 300} more; type to find them.`),
    );
  };
  draw();
  const box = dialog("Columns", h("div", {}, search, list), [
    h("button", { type: "button", onclick: () => box.close() }, "Cancel"),
    h(
      "button",
      {
        type: "button",
        onclick: () => {
          apply(columnsFrom(""));
          box.close();
        },
      },
      "Usual ones",
    ),
    h(
      "button.primary",
      {
        type: "button",
        onclick: () => {
          apply([...chosen]);
          box.close();
        },
      },
      "Show",
    ),
  ]);
}
