// One run: its head, its tabs, and the stream that keeps the tab which is shown up to date.

import { get, id as quoted, post, Stream } from "../lib/api.js";
import { Curves } from "../charts/curves.js";
import { announce, command, confirm, copy, fill, h, throttle } from "../lib/dom.js";
import { register } from "../lib/keys.js";
import { go, link, route } from "../lib/router.js";
import { Checkpoints } from "./checkpoints.js";
import { Documents } from "./documents.js";
import { Experts } from "./experts.js";
import { Logs } from "./logs.js";
import { Overview } from "./overview.js";
import { RecipeTab } from "./recipe.js";
import { Samples } from "./samples.js";
import { machineGroups } from "./system.js";
import { badge, empty, failure, skeleton, warning } from "../lib/states.js";
import { colour } from "../lib/theme.js";

export const title = "Run";

const ENDED = ["finished", "failed", "interrupted", "preempted", "lost"];
const LIVING = ["pending", "running", "waiting"];

class RunView {
  constructor(root, id, run, params, setTitle) {
    this.root = root;
    this.id = id;
    this.run = run;
    setTitle(run.info?.name ?? id);
    this.events = [];
    this.eventCursor = 0;
    this.head = h("div.run-head");
    this.tabs = h("nav.tabs", { "aria-label": "Parts of the run" });
    this.place = h("div.tab-place");
    fill(root, this.head, this.tabs, this.place);
    this.known = this.tabList();
    this.drawHead();
    this.open(params.get("tab") ?? "overview", params);
    this.unregister = register("Run", [
      ...this.known.map(([name, text], index) => [String(index + 1), text, () => this.choose(name)]),
      ["/", "Search in this tab", () => root.querySelector("[data-search]")?.focus()],
      ["c", "Compare with other runs", () => go(["compare"], { runs: id })],
      ["Escape", "Back to the runs", () => go(["runs"])],
    ]);
    this.refresh = throttle(() => this.reload(), 3000);
    this.stream = new Stream(() => this.tab?.streamParams?.() ?? {}, {
      runs: (event) => event.runs?.some((row) => row.id === id) && this.refresh(),
      series: (event) => this.tab?.add?.(event.series ?? []),
      log: (event) => event.run === id && this.tab?.lines?.(event),
    });
    this.moreEvents();
  }

  tabList() {
    const names = Object.values(this.run.metrics ?? {}).flat();
    const experts = names.some((name) => /(^|\/)moe\//.test(name));
    return [
      ["overview", "Overview"],
      ["curves", "Curves"],
      ["recipe", "Recipe"],
      ["logs", "Logs"],
      ["checkpoints", "Checkpoints"],
      ["samples", "Samples"],
      ["documents", "Documents"],
      ...(experts ? [["experts", "Experts"]] : []),
      ["system", "System"],
    ];
  }

  drawHead() {
    const { info = {}, summary = {} } = this.run;
    const problem = this.run.problem ?? summary.problem;
    const known = summary.state ?? info.state ?? "unknown";
    const state = problem && known === "unknown" ? "damaged" : known;
    const name = info.name ?? this.id;
    const idButton = h(
      "button.ghost.tiny",
      {
        type: "button",
        title: "Copy the id",
        "aria-label": `Copy the id ${this.id}`,
        onclick: () => copy(this.id, idButton),
      },
      h("code", {}, this.id),
    );
    fill(
      this.head,
      h("div.crumbs", {}, h("a", { href: "#/runs" }, "Runs"), h("span", { "aria-hidden": "true" }, "›"), idButton),
      h(
        "div.head",
        {},
        h("h1", {}, name),
        badge(state),
        (summary.tags ?? []).map((tag) => h("span.tag", {}, tag)),
        h("div.grow"),
        this.buttons(state),
      ),
      problem && warning(`${problem.replace(/\.?$/, ".")} What can be read is shown.`),
      summary.waiting && state === "running" && warning(summary.waiting),
    );
    fill(
      this.tabs,
      h(
        "ul",
        {},
        this.known.map(([tab, text]) =>
          h(
            "li",
            {},
            h(
              "a",
              {
                href: link(["run", this.id], { tab: tab === "overview" ? null : tab }),
                "aria-current": tab === this.current ? "page" : null,
                onclick: (event) => {
                  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
                  event.preventDefault();
                  this.choose(tab);
                },
              },
              text,
            ),
          ),
        ),
      ),
    );
    // On a narrow screen the tabs scroll; the current one is in sight.
    const current = this.tabs.querySelector("[aria-current]");
    if (current)
      this.tabs.scrollLeft =
        current.offsetLeft - this.tabs.offsetLeft - (this.tabs.clientWidth - current.offsetWidth) / 2;
  }

  buttons(state) {
    const online = /^https?:\/\//.test(this.run.wandb ?? "") ? this.run.wandb : null;
    return h(
      "div.buttons",
      {},
      online && h("a.button.small", { href: online, rel: "noreferrer noopener", target: "_blank" }, "W&B"),
      h("a.button.small", { href: link(["compare"], { runs: this.id }) }, "Compare"),
      h("a.button.small", { href: `/api/report?runs=${quoted(this.id)}`, download: "" }, "Report"),
      h("a.button.small", { href: `/api/export.csv?run=${quoted(this.id)}`, download: "" }, "CSV"),
      LIVING.includes(state) && h("button.small", { type: "button", onclick: () => this.stop() }, "Stop…"),
      ENDED.includes(state) &&
        state !== "finished" &&
        h("button.small", { type: "button", onclick: () => this.resume() }, "Resume…"),
    );
  }

  async stop() {
    if (
      !(await confirm(
        "Stop this run?",
        "It writes a checkpoint after the current step and ends; it can be resumed.",
        "Stop",
      ))
    )
      return;
    try {
      await post(`/api/jobs/${quoted(this.id)}/stop`);
      announce("The run is being stopped");
    } catch (error) {
      this.head.append(warning(error.message), command(this.run.commands.stop));
    }
  }

  async resume() {
    if (
      !(await confirm(
        "Resume this run?",
        "It goes on from its newest whole checkpoint, on the machine of this dashboard, and does not end with it.",
        "Resume",
      ))
    )
      return;
    try {
      await post(`/api/runs/${quoted(this.id)}/resume`);
      announce("The run is resumed");
      this.reload();
    } catch (error) {
      this.head.append(warning(error.message), this.run.commands.resume ? command(this.run.commands.resume) : "");
    }
  }

  choose(tab) {
    const keep = Object.fromEntries(
      ["smooth", "x", "logx", "logy", "outliers", "marks"].map((name) => [name, route().params.get(name)]),
    );
    history.pushState(null, "", link(["run", this.id], { tab: tab === "overview" ? null : tab, ...keep }));
    this.open(tab, route().params);
    announce(`${this.known.find(([name]) => name === tab)?.[1]} is shown`);
  }

  open(tab, params) {
    this.tab?.destroy?.();
    this.current = this.known.some(([name]) => name === tab) ? tab : "overview";
    this.drawHead();
    const place = fill(this.place, skeleton(6));
    const make = {
      overview: () => new Overview(place, this),
      curves: () => this.curves(place, params),
      recipe: () => new RecipeTab(place, this.id),
      logs: () => new Logs(place, this, params),
      checkpoints: () => new Checkpoints(place, this),
      samples: () => new Samples(place, this),
      documents: () => new Documents(place, this),
      experts: () => new Experts(place, this),
      system: () => this.system(place, params),
    };
    this.tab = make[this.current]();
    this.stream?.restart();
  }

  curves(place, params, groups = (metrics) => metrics) {
    const metrics = () => groups(this.run.metrics ?? {});
    const runs = [
      {
        id: this.id,
        label: this.run.info?.name ?? this.id,
        colour: () => colour("accent"),
        group: "",
        info: this.run.info,
      },
    ];
    const curves = new Curves({ runs, metrics: metrics(), params });
    fill(place, curves.element);
    curves.onFetched = () => this.stream?.restart();
    curves.told = () => curves.setMetrics(metrics());
    return curves;
  }

  system(place, params) {
    if (Object.keys(machineGroups(this.run.metrics ?? {})).length) return this.curves(place, params, machineGroups);
    fill(place, empty("Nothing was measured", "This run has written no metrics of speed or memory yet."));
    return {
      told: () => Object.keys(machineGroups(this.run.metrics ?? {})).length && this.open("system", route().params),
    };
  }

  async moreEvents() {
    try {
      const answer = await get(`/api/runs/${quoted(this.id)}/events`, { cursor: this.eventCursor });
      if (!answer.events?.length) return;
      this.events.push(...answer.events);
      this.eventCursor = answer.cursor;
      this.tab?.eventsChanged?.();
    } catch {
      // The head of the run says what is wrong with its folder.
    }
  }

  async reload() {
    try {
      this.run = await get(`/api/runs/${quoted(this.id)}`);
    } catch {
      return;
    }
    this.known = this.tabList();
    this.drawHead();
    this.moreEvents();
    this.tab?.told?.();
  }

  destroy() {
    this.stream.close();
    this.refresh.cancel();
    this.tab?.destroy?.();
    this.unregister();
  }
}

export async function mount(root, { path, params }, { title: setTitle }) {
  fill(root, skeleton(8));
  const id = path[1];
  if (!id) {
    go(["runs"]);
    return {};
  }
  try {
    const run = await get(`/api/runs/${quoted(id)}`);
    return new RunView(root, id, run, params, setTitle);
  } catch (error) {
    const gone = error.status === 404;
    const advice = gone && h("p.dim", {}, "A run that is just starting is shown as soon as its folder is there.");
    fill(
      root,
      failure(
        gone ? "This run is not here" : "This run cannot be shown",
        error.message,
        advice,
        h("a.button", { href: "#/runs" }, "Show all runs"),
      ),
    );
    return gone ? new Awaited(root, id, params, setTitle) : {};
  }
}

// A run that may come: a job that was submitted a moment ago, or a folder that the server is about to read.
class Awaited {
  constructor(...place) {
    this.place = place;
    this.look();
  }

  look() {
    this.timer = setTimeout(async () => {
      const [root, id, params, setTitle] = this.place;
      try {
        const { total } = await get("/api/runs", { query: `id = ${JSON.stringify(id)}`, limit: 1 });
        if (total && !this.gone)
          this.shown = new RunView(root, id, await get(`/api/runs/${quoted(id)}`), params, setTitle);
      } catch {
        // The frame of the page says when the server does not answer.
      }
      if (this.gone) this.shown?.destroy();
      else if (!this.shown) this.look();
    }, 1500);
  }

  destroy() {
    this.gone = true;
    clearTimeout(this.timer);
    this.shown?.destroy();
  }
}
