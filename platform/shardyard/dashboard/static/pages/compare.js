// Runs side by side: curves over one another, what differs in their recipes, their results, and how both hang together.

import { get, Stream } from "../lib/api.js";
import { Curves } from "../charts/curves.js";
import { dialog, download, fill, h } from "../lib/dom.js";
import { csv, fixed, metric, plain, real } from "../lib/format.js";
import { register } from "../lib/keys.js";
import { link, route, setParams } from "../lib/router.js";
import { Relations } from "../charts/relations.js";
import { scalingPlot } from "../charts/scaling.js";
import { badge, empty, skeleton, warning } from "../lib/states.js";
import { simpleTable } from "../lib/table.js";
import { runColours } from "../lib/theme.js";

export const title = "Compare";

const TABS = [
  ["curves", "Curves"],
  ["recipes", "Recipes"],
  ["results", "Results"],
  ["relations", "Relations"],
  ["scaling", "Scaling law"],
];
// What makes two runs differ without making them different experiments.
const SEEDS = /(^|\.)seed$|^name$|^description$|^tracking\./;

class CompareView {
  constructor(root, ids, params) {
    this.root = root;
    this.ids = ids;
    this.hidden = new Set((params.get("hidden") ?? "").split(",").filter(Boolean));
    this.current = TABS.some(([name]) => name === params.get("tab")) ? params.get("tab") : "curves";
    this.unregister = register(
      "Compare",
      TABS.map(([name, text], index) => [String(index + 1), text, () => this.choose(name)]),
    );
  }

  async load() {
    const answer = await get("/api/compare", { runs: this.ids });
    const rows = new Map((answer.results ?? []).map((row) => [row.run, row]));
    const runs = this.ids.map((id) => ({ ...(rows.get(id) ?? { problem: "There is no such run any more." }), id }));
    this.answer = answer;
    this.results = new Map(runs.map((run) => [run.id, run.metrics ?? {}]));
    this.bands = answer.bands ?? [];
    this.runs = runs.map((run, index) => ({
      id: run.id,
      label: this.label(run, runs),
      group: this.seedGroup(run),
      problem: run.problem,
      state: run.state,
      info: run.info ?? {},
      metrics: run.groups ?? {},
      colour: () => runColours()[index % runColours().length],
    }));
    fill(
      this.root,
      this.head(),
      (this.legend = h("ul.legend", { "aria-label": "Runs" })),
      h("nav.tabs", { "aria-label": "Ways to compare" }),
      (this.place = h("div.tab-place")),
    );
    this.drawLegend();
    this.open();
    this.stream = new Stream(() => this.curves?.streamParams() ?? {}, {
      series: (event) => this.curves?.add(event.series ?? []),
    });
  }

  // The name, with the end of the id where several runs are called the same.
  label(run, runs) {
    const name = run.info?.name ?? run.id;
    const same = runs.filter((other) => (other.info?.name ?? other.id) === name).length > 1;
    return same ? `${name} ${run.id.slice(-4)}` : name;
  }

  // Runs that differ in nothing but their seeds make one band, called after what sets it apart from the others.
  seedGroup(run) {
    const together = this.bands.findIndex(({ runs }) => runs.includes(run.id));
    if (together < 0) return run.id;
    const rest = (this.answer.recipe_diff ?? []).filter(({ path }) => !SEEDS.test(path));
    const said = rest.map(({ path, values }) => `${path.split(".").at(-1)}=${plain(values?.[run.id])}`);
    return said.join(" ") || run.info?.name || run.id;
  }

  head() {
    return h(
      "div.head",
      {},
      h("h1", {}, "Compare"),
      h("span.count", {}, `${this.runs.length} runs`),
      h("div.grow"),
      h(
        "div.buttons",
        {},
        h("button.small", { type: "button", onclick: () => addRuns(this.ids) }, "Add runs…"),
        h(
          "a.button.small",
          { href: `/api/report?runs=${this.ids.map(encodeURIComponent).join(",")}`, download: "" },
          "Report",
        ),
      ),
    );
  }

  drawLegend() {
    fill(
      this.legend,
      this.runs.map((run) => {
        const swatch = h("span.swatch", { "aria-hidden": "true" });
        swatch.style.backgroundColor = run.colour();
        const shown = !this.hidden.has(run.id);
        return h(
          "li",
          {
            class: shown ? "" : "off",
            onmouseenter: () => this.curves?.highlight(run.id),
            onmouseleave: () => this.curves?.highlight(null),
          },
          h(
            "button.ghost.small",
            {
              type: "button",
              "aria-pressed": String(shown),
              title: `${run.id}: show or hide`,
              onclick: () => this.toggle(run.id),
            },
            swatch,
            run.label,
          ),
          run.problem && badge("damaged"),
          h(
            "a.ghost.tiny.button",
            { href: link(["run", run.id]), "aria-label": `Open ${run.label}`, title: "Open" },
            "↗",
          ),
          h(
            "a.ghost.tiny.button",
            {
              href: link(["compare"], {
                ...Object.fromEntries(route().params),
                runs: this.ids.filter((id) => id !== run.id).join(","),
              }),
              "aria-label": `Remove ${run.label}`,
              title: "Remove",
            },
            "×",
          ),
        );
      }),
    );
  }

  toggle(id) {
    if (this.hidden.has(id)) this.hidden.delete(id);
    else this.hidden.add(id);
    setParams({ hidden: [...this.hidden].join(",") });
    this.drawLegend();
    this.curves?.hide(id, this.hidden.has(id));
  }

  choose(tab) {
    this.current = tab;
    setParams({ tab: tab === "curves" ? null : tab }, { push: true });
    this.open();
  }

  open() {
    this.part?.destroy?.();
    this.curves = null;
    const nav = this.root.querySelector("nav.tabs");
    fill(
      nav,
      h(
        "ul",
        {},
        TABS.map(([name, text]) =>
          h(
            "li",
            {},
            h(
              "a",
              {
                href: link(["compare"], { ...Object.fromEntries(route().params), tab: name }),
                "aria-current": name === this.current ? "page" : null,
                onclick: (event) => {
                  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
                  event.preventDefault();
                  this.choose(name);
                },
              },
              text,
            ),
          ),
        ),
      ),
    );
    const make = {
      curves: () => this.drawCurves(),
      recipes: () => this.drawRecipes(),
      results: () => this.drawResults(),
      relations: () => this.drawRelations(),
      scaling: () => this.drawScaling(),
    };
    this.part = make[this.current]() ?? {};
  }

  drawCurves() {
    const groups = new Set(this.runs.map((run) => run.group));
    const metrics = {};
    for (const run of this.runs) {
      for (const [prefix, names] of Object.entries(run.metrics))
        metrics[prefix] = [...new Set([...(metrics[prefix] ?? []), ...names])];
    }
    this.curves = new Curves({
      runs: this.runs,
      metrics,
      params: route().params,
      canBand: groups.size < this.runs.length,
    });
    for (const id of this.hidden) this.curves.hiddenRuns.add(id);
    fill(this.place, this.curves.element);
    this.curves.onFetched = () => this.stream?.restart();
    return this.curves;
  }

  drawRecipes() {
    const rows = this.answer.recipe_diff ?? [];
    if (!rows.length) {
      fill(this.place, empty("No differences", "The recipes of these runs are the same, defaults included."));
      return;
    }
    fill(
      this.place,
      h(
        "section.panel",
        {},
        h(
          "div.head",
          {},
          h("h2", {}, "What differs"),
          h("div.grow"),
          h(
            "button.ghost.tiny",
            {
              type: "button",
              onclick: () =>
                download(
                  "recipes.csv",
                  csv([
                    ["field", ...this.ids],
                    ...rows.map(({ path, values }) => [path, ...this.ids.map((id) => plain(values?.[id]))]),
                  ]),
                ),
            },
            "CSV",
          ),
        ),
        simpleTable(
          "Differences of the recipes",
          ["Field", ...this.runs.map((run) => run.label)],
          rows.map(({ path, values }) => [h("code", {}, path), ...this.runs.map((run) => value(values, run.id))]),
        ),
      ),
    );
  }

  drawResults() {
    const metrics = this.metricNames();
    const cells = (run) => metrics.map((name) => real(this.results.get(run.id)?.[name]));
    const best = metrics.map((name, index) => {
      const values = this.runs.map((run) => cells(run)[index]).filter(Number.isFinite);
      if (new Set(values).size < 2 || /^(step|.*tokens|.*lr)$/.test(name)) return undefined;
      return /accuracy|bleu|tokens_per_second|mfu|chrf|f1|recall/.test(name)
        ? Math.max(...values)
        : /loss|perplexity|seconds|error|wer|cer/.test(name)
          ? Math.min(...values)
          : undefined;
    });
    fill(
      this.place,
      h(
        "section.panel",
        {},
        h(
          "div.head",
          {},
          h("h2", {}, "Results"),
          h("div.grow"),
          h(
            "button.ghost.tiny",
            {
              type: "button",
              onclick: () =>
                download("results.csv", csv([["run", ...metrics], ...this.runs.map((run) => [run.id, ...cells(run)])])),
            },
            "CSV",
          ),
        ),
        simpleTable(
          "Results",
          ["Run", "State", ...metrics],
          this.runs.map((run) => [
            h("a", { href: link(["run", run.id]) }, run.label),
            badge(run.problem ? "damaged" : run.state),
            ...cells(run).map((cell, index) =>
              cell !== undefined && cell === best[index]
                ? h("strong.best", { title: "the best of these" }, shown(metrics[index], cell))
                : shown(metrics[index], cell),
            ),
          ]),
          { numeric: metrics.map((_, index) => index + 2) },
        ),
      ),
    );
  }

  metricNames() {
    const names = new Set();
    for (const row of this.results.values()) {
      for (const [name, value] of Object.entries(row))
        if (typeof real(value) === "number" && !name.includes("moe/tokens/")) names.add(name);
    }
    const order = (name) => (name.startsWith("eval") ? 0 : name.startsWith("train") || name === "loss" ? 1 : 2);
    return [...names].sort((a, b) => order(a) - order(b) || a.localeCompare(b));
  }

  drawRelations() {
    const axes = (this.answer.recipe_diff ?? [])
      .filter(({ path }) => !/^(name|description)$/.test(path))
      .map(({ path, values }) => ({ name: path, of: (run) => values?.[run] }));
    const metrics = this.metricNames().map((name) => ({
      name,
      metric: true,
      of: (run) => real(this.results.get(run)?.[name]),
    }));
    return new Relations(this.place, { runs: this.runs, axes, metrics, params: route().params });
  }

  drawScaling() {
    const points = this.runs
      .map((run) => ({
        run: run.id,
        label: run.label,
        parameters: run.info.plan?.architecture?.matmul_parameters ?? run.info.plan?.architecture?.parameters,
        tokens: real(this.results.get(run.id)?.["train/tokens"]) ?? run.info.plan?.tokens,
        loss: real(this.results.get(run.id)?.["eval/validation/loss"] ?? this.results.get(run.id)?.["train/loss"]),
      }))
      .filter((point) => point.parameters && point.tokens && Number.isFinite(point.loss));
    if (points.length < 2) {
      fill(
        this.place,
        empty("Too few points", "A scaling law needs the size, the training tokens and the loss of at least two runs."),
      );
      return {};
    }
    const chart = scalingPlot("Loss over compute", points, null);
    fill(
      this.place,
      h(
        "p.dim",
        {},
        "Each point is a run: C = 6·N·D training FLOPs. The page of a sweep with ",
        h("code", {}, "scaling_law"),
        " also fits L(N, D).",
      ),
      chart.element,
    );
    chart.render();
    return chart;
  }

  destroy() {
    this.stream?.close();
    this.part?.destroy?.();
    this.unregister();
  }
}

// Losses and the like with as many digits in every row, the rest in its unit.
function shown(name, cell) {
  return /loss|perplexity|norm|accuracy/.test(name) ? fixed(cell) : metric(name, cell);
}

function value(values, run) {
  return values?.[run] !== undefined && values[run] !== null
    ? h("code", {}, plain(values[run]))
    : h("span.dim", {}, "–");
}

// Choose runs by name, on top of those that are there.
export async function addRuns(ids) {
  const chosen = new Set(ids);
  const list = h("div.choices");
  const show = async (query) => {
    try {
      const { runs } = await get("/api/runs", { query, limit: 60, sort: "created:last:desc" });
      fill(
        list,
        runs.map((run) => {
          const box = h("input", {
            type: "checkbox",
            checked: chosen.has(run.id),
            onchange: () => (box.checked ? chosen.add(run.id) : chosen.delete(run.id)),
          });
          return h("label.toggle", {}, box, h("span", {}, run.name, " ", h("span.dim", {}, run.id)), badge(run.state));
        }),
      );
    } catch (error) {
      fill(list, warning(error.message));
    }
  };
  const search = h("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search runs",
    onchange: () => show(search.value),
  });
  const box = dialog("Runs to compare", h("div", {}, search, list), [
    h("button", { type: "button", onclick: () => box.close() }, "Cancel"),
    h(
      "button.primary",
      {
        type: "button",
        onclick: () => {
          box.close();
          location.hash = link(["compare"], { ...Object.fromEntries(route().params), runs: [...chosen].join(",") });
        },
      },
      "Compare",
    ),
  ]);
  show("");
}

export async function mount(root, { params }) {
  const ids = [...new Set((params.get("runs") ?? "").split(",").filter(Boolean))];
  if (!ids.length) {
    fill(
      root,
      h("div.head", {}, h("h1", {}, "Compare")),
      empty(
        "Nothing to compare yet",
        "Choose runs here, or tick them in the table of runs and press c.",
        h("button.primary", { type: "button", onclick: () => addRuns([]) }, "Choose runs…"),
      ),
    );
    return {};
  }
  fill(root, skeleton(8));
  const view = new CompareView(root, ids, params);
  try {
    await view.load();
  } catch (error) {
    view.destroy();
    throw error;
  }
  return view;
}
