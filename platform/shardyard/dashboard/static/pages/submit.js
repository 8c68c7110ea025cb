// A recipe to the cluster: choose it, change fields, see at once what is wrong, what follows and whether it fits.

import { get, post, who } from "../lib/api.js";
import { announce, command, confirm, debounce, field, fill, h, shell } from "../lib/dom.js";
import { bytes, count, number, whole } from "../lib/format.js";
import { link, setParams } from "../lib/router.js";
import { yaml } from "../run/recipe.js";
import { failure, skeleton, warning } from "../lib/states.js";
import { begin } from "./data.js";

export const title = "Submit";

const MEMORY = {
  parameters_bytes: "Parameters",
  gradients_bytes: "Gradients",
  optimizer_bytes: "Optimizer",
  activations_bytes: "Activations",
  logits_bytes: "Logits",
  buffers_bytes: "Buffers",
};

class SubmitView {
  constructor(root, recipes, session, params) {
    this.root = root;
    this.recipes = recipes;
    this.session = session;
    this.name = recipes.some((recipe) => recipe.name === params.get("recipe"))
      ? params.get("recipe")
      : (recipes.find((recipe) => recipe.name === "gpt/quickstart") ?? recipes[0])?.name;
    this.overrides = params.get("set") ?? "";
    this.frame();
    this.open(this.name);
  }

  frame() {
    this.list = h("ul.recipes", { "aria-label": "Recipes" });
    this.search = h("input", {
      type: "search",
      placeholder: "Find a recipe",
      "aria-label": "Find a recipe",
      "data-search": "yes",
      oninput: () => this.drawList(),
    });
    this.editor = h("textarea", {
      id: "overrides",
      rows: 6,
      spellcheck: "false",
      placeholder: "train.steps=500\noptimizer.lr=3e-4",
      "aria-describedby": "overrides-hint problems",
      oninput: () => this.changed(),
    });
    this.editor.value = this.overrides;
    this.problems = h("div.problems", { id: "problems", role: "status", "aria-live": "polite" });
    this.plan = h("div.plan", { "aria-live": "polite" });
    this.text = h("div");
    this.button = h("button.primary", { type: "button", disabled: true, onclick: () => this.submit() }, "Submit");
    this.answer = h("div", { role: "status" });
    const closed = !this.session.cluster;
    fill(
      this.root,
      h("div.head", {}, h("h1", {}, "Submit a recipe")),
      h(
        "div.submit-grid",
        {},
        h("section.panel.choose", { "aria-label": "Recipes" }, this.search, this.list),
        h(
          "div",
          {},
          h(
            "section.panel",
            {},
            h("h2", {}, "Changes"),
            field("One field a line, as path=value", this.editor, {
              hint: h("span", { id: "overrides-hint" }, "Checked as you type; the recipe itself stays as it is."),
            }),
            this.problems,
            h(
              "div.actions",
              {},
              this.button,
              (this.look = h(
                "button",
                { type: "button", disabled: true, onclick: () => begin(this.name, this.editor.value) },
                "Look at the data",
              )),
              h("span.dim", {}, closed ? "No cluster is connected. In a terminal:" : ""),
            ),
            closed && (this.terminal = h("div")),
            this.answer,
          ),
          h("section.panel", {}, h("h2", {}, "Plan"), this.plan),
          h("section.panel", {}, h("h2", {}, "Recipe"), this.text),
        ),
      ),
    );
    this.drawList();
    this.checkSoon = debounce(() => this.check(), 300);
  }

  drawList() {
    const wanted = this.search.value.trim().toLowerCase();
    const found = this.recipes.filter((recipe) =>
      `${recipe.name} ${recipe.description ?? ""}`.toLowerCase().includes(wanted),
    );
    fill(
      this.list,
      found.map((recipe) =>
        h(
          "li",
          {},
          h(
            "button",
            {
              type: "button",
              "aria-pressed": String(recipe.name === this.name),
              onclick: () => this.open(recipe.name),
            },
            h("strong", {}, recipe.name),
            h("span.dim", {}, recipe.description ?? ""),
          ),
        ),
      ),
      !found.length && h("li.dim", {}, "No recipe is called so."),
    );
    const chosen = this.list.querySelector("[aria-pressed=true]");
    if (
      chosen &&
      (chosen.offsetTop < this.list.scrollTop ||
        chosen.offsetTop + chosen.offsetHeight > this.list.scrollTop + this.list.clientHeight)
    )
      this.list.scrollTop = chosen.offsetTop - this.list.clientHeight / 3;
  }

  async open(name) {
    this.name = name;
    setParams({ recipe: name });
    this.drawList();
    this.checkSoon();
    fill(this.text, skeleton(8));
    try {
      const { text } = await get(`/api/recipes/${name.split("/").map(encodeURIComponent).join("/")}`);
      if (name === this.name) fill(this.text, yaml(text));
    } catch (error) {
      fill(this.text, warning(error.message));
    }
  }

  changed() {
    this.button.disabled = this.look.disabled = true;
    setParams({ set: this.editor.value });
    this.checkSoon();
  }

  lines() {
    return this.editor.value
      .split("\n")
      .map((line) => line.trim())
      .filter((line) => line && !line.startsWith("#"));
  }

  // Problems are known at once; the plan takes longer, because a model is measured for it.
  async check() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    this.plan.classList.add("stale");
    const asked = { name: this.name, overrides: this.lines() };
    try {
      const quick = await post("/api/recipes/check", { ...asked, plan: false });
      if (turn !== this.turn) return;
      this.found(quick.problems ?? []);
      const planned = quick.problems?.length ? quick : await post("/api/recipes/check", asked);
      if (turn !== this.turn) return;
      this.found(planned.problems ?? []);
      fill(
        this.plan,
        planned.plan ? shown(planned.plan) : h("p.dim", {}, "The plan appears when the recipe is valid."),
      );
    } catch (error) {
      if (turn === this.turn) fill(this.problems, warning(error.message));
    }
    if (turn === this.turn) this.plan.classList.remove("stale");
  }

  found(problems) {
    this.editor.setAttribute("aria-invalid", String(problems.length > 0));
    fill(
      this.problems,
      problems.length
        ? h(
            "ul",
            {},
            problems.map((one) =>
              h(
                "li",
                {},
                one.path && h("code", {}, one.path),
                " ",
                one.message,
                one.where && h("span.dim", {}, ` (${one.where})`),
              ),
            ),
          )
        : h("p.good", {}, "The recipe is valid."),
    );
    if (!this.plan.hasChildNodes()) fill(this.plan, skeleton(4));
    this.button.disabled = problems.length > 0 || !this.session.cluster;
    this.look.disabled = problems.length > 0;
    // A command that would be refused is not offered.
    if (this.terminal)
      fill(
        this.terminal,
        problems.length
          ? h("p.dim", {}, "The command appears when the recipe is valid.")
          : command(
              `shardyard launch ${this.name}${this.lines()
                .map((line) => ` -s ${shell(line)}`)
                .join("")} --runs-dir ${shell(this.session.runs_dir)}`,
            ),
      );
  }

  async submit() {
    const overrides = this.lines();
    if (
      !(await confirm(
        `Submit ${this.name}?`,
        overrides.length ? `With ${overrides.join(", ")}.` : "As it is, without changes.",
        "Submit",
      ))
    )
      return;
    this.button.disabled = true;
    try {
      const { id } = await post("/api/jobs", { recipe: this.name, overrides });
      announce("The job is submitted");
      fill(
        this.answer,
        h(
          "p.good",
          {},
          "Submitted as ",
          h("code", {}, id),
          ". ",
          h("a", { href: link(["run", id]) }, "Show the run"),
          " once it has started, or ",
          h("a", { href: "#/jobs" }, "the jobs"),
          ".",
        ),
      );
    } catch (error) {
      fill(this.answer, warning(error.message));
    }
    this.button.disabled = false;
  }

  destroy() {
    this.turn = -1;
    this.checkSoon.cancel();
  }
}

function shown(plan) {
  const verdict =
    plan.fits === true
      ? h("p.good", {}, "It fits.")
      : plan.fits === false
        ? h("p.bad", {}, "It does not fit into the memory of a rank.")
        : h("p.dim", {}, "Whether it fits is not known: the memory of the devices is not known.");
  const rows = plan.rows ?? [
    ["Model", plan.architecture && `${plan.architecture.family}, ${count(plan.architecture.parameters)} parameters`],
    ["Ranks", plan.world?.size],
    ["Precision", plan.precision],
    ["Steps", whole(plan.steps)],
    ["Tokens", count(plan.tokens)],
    ["Tokens a step", whole(plan.tokens_per_step)],
    ["Micro-batch × accumulation", plan.micro_batch && `${plan.micro_batch} × ${plan.accumulation}`],
    ["FLOPs", count(plan.flops)],
    [
      "Checkpoint every",
      plan.checkpoint_seconds ? `${whole(plan.checkpoint_seconds)} s` : whole(plan.checkpoint_every),
    ],
    ["Evaluation every", whole(plan.evaluate_every)],
  ];
  return [
    verdict,
    memory(plan),
    h(
      "dl.facts",
      {},
      rows
        .filter(([, value]) => value !== undefined && value !== null && value !== "–")
        .map(([name, value, why]) => [
          h("dt", {}, name),
          h("dd", {}, typeof value === "number" ? number(value) : String(value), why && h("span.dim", {}, ` ${why}`)),
        ]),
    ),
  ];
}

// Memory of one rank as one bar, a part for each thing that takes some.
function memory(plan) {
  const parts = Object.entries(MEMORY)
    .map(([key, name]) => [name, plan.memory?.[key] ?? 0])
    .filter(([, value]) => value > 0);
  const needed = parts.reduce((sum, [, value]) => sum + value, 0);
  if (!needed) return null;
  const room = plan.world?.device_bytes ?? 0;
  const bar = h(
    "div.stack",
    { role: "img", "aria-label": `Memory of a rank: ${bytes(needed)}${room ? ` of ${bytes(room)}` : ""}` },
    parts.map(([name, value], index) => {
      const piece = h("span", { class: `part part-${index}`, title: `${name}: ${bytes(value)}` });
      piece.style.width = `${(100 * value) / Math.max(needed, room)}%`;
      return piece;
    }),
  );
  return h(
    "div.memory",
    {},
    bar,
    h("p.dim", {}, `${bytes(needed)} a rank${room ? ` of ${bytes(room)}` : ""}`),
    h(
      "ul.parts",
      {},
      parts.map(([name, value], index) =>
        h("li", {}, h("span", { class: `swatch part-${index}`, "aria-hidden": "true" }), `${name} ${bytes(value)}`),
      ),
    ),
  );
}

export async function mount(root, { params }) {
  fill(root, skeleton(8));
  const [recipes, session] = await Promise.all([get("/api/recipes"), who()]);
  const list = Array.isArray(recipes) ? recipes : (recipes.recipes ?? []);
  if (!list.length) {
    fill(root, failure("No recipes", "The package brings none; is it installed whole?"));
    return {};
  }
  return new SubmitView(root, list, session, params);
}
