// Sweeps: all of them, and one with its trials, what its parameters do to the result, and its scaling law.

import { get, who } from "../lib/api.js";
import { command, fill, h, shell } from "../lib/dom.js";
import { ago, count, number, percent, plain, real, whole } from "../lib/format.js";
import { link } from "../lib/router.js";
import { Relations } from "../charts/relations.js";
import { scalingPlot } from "../charts/scaling.js";
import { badge, empty, skeleton, warning } from "../lib/states.js";
import { simpleTable } from "../lib/table.js";

export const title = "Sweeps";

export async function mount(root, { path, params }, { title: setTitle }) {
  fill(root, skeleton(8));
  if (!path[1]) return list(root);
  const sweep = await get(`/api/sweeps/${encodeURIComponent(path[1])}`);
  setTitle(sweep.name ?? sweep.id);
  return new SweepView(root, sweep, params);
}

async function list(root) {
  const answer = await get("/api/sweeps");
  const sweeps = Array.isArray(answer) ? answer : (answer.sweeps ?? []);
  const head = h(
    "div.head",
    {},
    h("h1", {}, "Sweeps"),
    h("span.count", {}, sweeps.length ? String(sweeps.length) : ""),
  );
  if (!sweeps.length) {
    const { runs_dir: folder } = await who();
    fill(
      root,
      head,
      empty(
        "No sweeps yet",
        "A sweep launches one recipe many times, with other settings each time, and finds the best:",
        command(`shardyard sweep sweeps/lr-batch --runs-dir ${shell(folder)}`),
      ),
    );
    return {};
  }
  const rows = sweeps.map((sweep) => [
    h("a", { href: link(["sweeps", sweep.id]) }, sweep.name ?? sweep.id),
    badge(sweep.problem ? "damaged" : sweep.state),
    sweep.finished === undefined ? whole(sweep.trials) : `${whole(sweep.finished)} / ${whole(sweep.trials)}`,
    sweep.metric ?? "",
    sweep.best_run ? h("a", { href: link(["run", sweep.best_run]) }, number(sweep.best)) : number(sweep.best),
    sweep.recipe ?? "",
    ago((Date.now() - new Date(sweep.created).getTime()) / 1000),
  ]);
  fill(
    root,
    head,
    h(
      "section.panel",
      {},
      simpleTable("Sweeps", ["Sweep", "State", "Trials", "Metric", "Best", "Recipe", "Created"], rows, {
        numeric: [2, 4],
        className: "stacked",
      }),
    ),
  );
  return {};
}

// Values of a parameter that is a whole section, such as model.config, each under its own dotted name.
function flat(parameters, prefix = "") {
  return Object.assign(
    {},
    ...Object.entries(parameters).map(([key, value]) =>
      value && typeof value === "object" && !Array.isArray(value)
        ? flat(value, `${prefix}${key}.`)
        : { [prefix + key]: value },
    ),
  );
}

function varying(list) {
  const names = [...new Set(list.flatMap((parameters) => Object.keys(parameters)))];
  const differing = names.filter((name) => new Set(list.map((parameters) => plain(parameters[name]))).size > 1);
  return differing.length ? differing : names;
}

class SweepView {
  constructor(root, sweep, params) {
    this.sweep = sweep;
    const trials = (sweep.trials ?? []).map((trial) => ({ ...trial, parameters: flat(trial.parameters ?? {}) }));
    const runs = trials
      .filter((trial) => trial.run)
      .map((trial) => ({ id: trial.run, label: `trial ${trial.trial ?? ""}`.trim(), trial }));
    const of = new Map(runs.map((run) => [run.id, run.trial]));
    const names = varying(trials.map((trial) => trial.parameters));
    const relations = h("div");
    const law = h("div");
    fill(
      root,
      h(
        "div.crumbs",
        {},
        h("a", { href: "#/sweeps" }, "Sweeps"),
        h("span", { "aria-hidden": "true" }, "›"),
        h("code", {}, sweep.id),
      ),
      h(
        "div.head",
        {},
        h("h1", {}, sweep.name ?? sweep.id),
        sweep.state && badge(sweep.state),
        h("span.count", {}, `${trials.length} trials`),
        h("div.grow"),
        runs.length > 0 &&
          h(
            "a.button.small",
            {
              href: link(["compare"], {
                runs: runs
                  .slice(0, 50)
                  .map((run) => run.id)
                  .join(","),
              }),
            },
            "Compare",
          ),
      ),
      sweep.problem && warning(sweep.problem),
      this.best(trials),
      relations,
      law,
      this.table(trials, names),
    );
    if (runs.length > 1) {
      this.relations = new Relations(relations, {
        runs,
        params,
        axes: names.map((name) => ({ name, of: (run) => of.get(run)?.parameters?.[name] })),
        metrics: [
          { name: sweep.metric ?? "metric", metric: true, of: (run) => real(of.get(run)?.metric ?? undefined) },
          { name: "tokens", of: (run) => of.get(run)?.tokens },
          { name: "parameters", of: (run) => of.get(run)?.model_parameters ?? undefined },
        ].filter((one) => runs.some((run) => Number.isFinite(one.of(run.id)))),
      });
    }
    if (sweep.fit) this.showFit(law, sweep.fit, trials);
    else this.readFit(law, trials);
  }

  // Fitting takes a while, so it is asked for when everything else is there.
  async readFit(place, trials) {
    const { fit } = await get(`/api/sweeps/${encodeURIComponent(this.sweep.id)}`, { fit: 1 }).catch(() => ({}));
    if (fit && !this.gone) this.showFit(place, fit, trials);
  }

  showFit(place, fit, trials) {
    if (fit.constants) this.law(place, fit, trials);
    else if (fit.problem) fill(place, warning(`No scaling law yet: ${fit.problem}`));
  }

  best(trials) {
    const sign = this.sweep.mode === "max" ? -1 : 1;
    const ranked = trials
      .filter((trial) => Number.isFinite(real(trial.metric)))
      .sort((a, b) => sign * (real(a.metric) - real(b.metric)));
    if (!ranked.length) return null;
    const best = ranked[0];
    return h(
      "div.callout",
      {},
      h("span.label", {}, "Best"),
      h("strong", {}, number(best.metric)),
      h("span.dim", {}, this.sweep.metric ?? ""),
      " with ",
      Object.entries(best.parameters ?? {}).map(([name, value]) => h("code", {}, `${name}=${plain(value)}`)),
      best.run && h("a.button.small", { href: link(["run", best.run]) }, "Open"),
    );
  }

  law(place, fit, trials) {
    const points = (fit.points ?? []).map((point) => ({
      ...point,
      run: trials.find((trial) => real(trial.metric) === point.loss)?.run,
    }));
    this.chart = scalingPlot("Scaling law", points, fit);
    const test = this.sweep.prediction;
    fill(
      place,
      h(
        "section.panel",
        {},
        h("h2", {}, "Scaling law"),
        h(
          "p",
          {},
          h("code", {}, fit.formula),
          fit.rms_error !== undefined && h("span.dim", {}, `, off by ${percent(fit.rms_error)} (root mean square)`),
        ),
        test &&
          h(
            "p",
            {},
            `The test has ${count(test.parameters)} parameters and ${count(test.tokens)} tokens: predicted ${number(test.loss)}${test.measured ? `, measured ${number(test.measured)}` : ""}.`,
          ),
        this.chart.element,
      ),
    );
    this.chart.render();
  }

  table(trials, names) {
    const rows = trials.map((trial) => [
      trial.run ? h("a", { href: link(["run", trial.run]) }, `${trial.trial ?? trial.run}`) : `${trial.trial ?? ""}`,
      badge(trial.state === "stopped early" ? "stopped" : trial.state),
      whole(trial.step),
      number(trial.metric),
      ...names.map((name) => h("code", {}, plain(trial.parameters?.[name]))),
      trial.error ? h("span.bad", {}, trial.error) : "",
    ]);
    const numeric = [2, 3];
    return h(
      "section.panel",
      {},
      h("h2", {}, "Trials"),
      simpleTable("Trials", ["Trial", "State", "Step", this.sweep.metric ?? "Metric", ...names, ""], rows, { numeric }),
    );
  }

  destroy() {
    this.gone = true;
    this.relations?.destroy();
    this.chart?.destroy();
  }
}
