// Jobs of all schedulers: who waits for what and why, what runs where, what it writes, and a way to stop it.

import { get, id as quoted, post, who } from "../lib/api.js";
import { announce, command, confirm, dialog, fill, h, shell } from "../lib/dom.js";
import { ago, bytes, duration, moment, number } from "../lib/format.js";
import { register } from "../lib/keys.js";
import { link } from "../lib/router.js";
import { badge, empty, failure, skeleton, warning } from "../lib/states.js";
import { simpleTable } from "../lib/table.js";

export const title = "Jobs";

const EVERY = 4000;
const SOON = 1000;
const LOG_LINES = 400;
// More nodes of a scheduler than the first number are folded away, and more than the second are counted only.
const OPEN_NODES = 8;
const MOST_NODES = 24;

class JobsView {
  constructor(root) {
    this.root = root;
    this.runsDir = undefined;
    // Schedulers whose nodes a person has unfolded.
    this.unfolded = new Set();
    this.wrong = h("div");
    this.place = h("div");
    fill(
      root,
      h(
        "div.head",
        {},
        h("h1", {}, "Jobs"),
        (this.count = h("span.count")),
        h("div.grow"),
        h("a.button.primary.small", { href: "#/submit" }, "Submit a recipe"),
      ),
      this.wrong,
      this.place,
    );
    fill(this.place, skeleton(6));
    this.unregister = register("Jobs", [["n", "Submit a recipe", () => (location.hash = "#/submit")]]);
    this.onVisibility = () => !document.hidden && this.load();
    document.addEventListener("visibilitychange", this.onVisibility);
    this.load();
  }

  async load() {
    clearTimeout(this.timer);
    if (this.gone || document.hidden) return;
    try {
      this.runsDir ??= (await who()).runs_dir;
      this.draw(await get("/api/jobs"));
      fill(this.wrong);
    } catch (error) {
      if (this.drawn) fill(this.wrong, warning(error.message));
      else fill(this.place, failure("The jobs cannot be listed", error.message));
    }
    this.timer = setTimeout(() => this.load(), this.said === undefined ? SOON : EVERY);
  }

  draw(answer) {
    const said = JSON.stringify(answer);
    if (said === this.said) return;
    this.said = said;
    this.drawn = true;
    const schedulers = answer.schedulers ?? [];
    if (schedulers.length === 1 && schedulers[0].answered === false) {
      this.wait();
      return;
    }
    if (!answer.available && schedulers.length < 2) {
      this.count.textContent = "";
      fill(this.place, this.nothing(answer.why));
      return;
    }
    const jobs = answer.jobs ?? [];
    const open = jobs.filter((job) => !job.ended);
    const over = jobs.filter((job) => job.ended);
    this.count.textContent = `${open.length} at work or waiting`;
    fill(
      this.place,
      schedulers.filter((one) => !one.available).map((one) => warning(`${one.name}: ${one.why}`)),
      h(
        "section",
        { "aria-labelledby": "nodes" },
        h("h2", { id: "nodes" }, "Nodes"),
        schedulers
          .filter((one) => one.available)
          .map((one) =>
            capacity(
              one,
              (answer.nodes ?? []).filter((node) => node.scheduler === one.name),
              this.unfolded,
            ),
          ),
      ),
      h(
        "section.panel",
        {},
        h("h2", {}, "Queue"),
        open.length ? this.table(open, true) : h("p.dim", {}, "Nothing runs and nothing waits."),
      ),
      over.length > 0 && h("section.panel", {}, h("h2", {}, "Ended"), this.table(over, false)),
    );
  }

  // The only scheduler is being asked for the first time; the next answer is drawn whatever it says.
  wait() {
    this.said = undefined;
    fill(this.place, skeleton(6));
  }

  nothing(why) {
    return empty(
      "No cluster",
      sentence(why || "the dashboard knows of no cluster."),
      h("p", {}, "Start one on this machine, then this dashboard with its address:"),
      command("shardyard cluster up"),
      command(`shardyard dashboard --address http://127.0.0.1:8265 --runs-dir ${shell(this.runsDir)}`),
      h(
        "p.dim",
        {},
        "Runs that ",
        h("code", {}, "shardyard launch"),
        " started need no cluster and are listed under Runs.",
      ),
    );
  }

  table(jobs, open) {
    const rows = jobs.map((job) => [
      job.run ? h("a", { href: link(["run", job.run]) }, job.name ?? job.id) : (job.name ?? job.id),
      h("span", { title: job.scheduler_state || null }, badge(stateOf(job))),
      h("span.reason", {}, open ? job.waiting || job.doing : job.message || job.doing || exit(job)),
      job.scheduler,
      job.recipe ?? "",
      job.needs ?? "",
      when(job),
      h(
        "div.buttons",
        {},
        h("button.small", { type: "button", onclick: () => this.log(job) }, "Log"),
        open && h("button.small", { type: "button", onclick: () => this.stop(job) }, "Stop"),
        !open && h("code", {}, job.id),
      ),
    ]);
    return simpleTable(
      open ? "Jobs in the queue" : "Ended jobs",
      [
        "Job",
        "State",
        open ? "What it does" : "How it ended",
        "Scheduler",
        "Recipe",
        "Needs",
        "When",
        open ? "" : "Id",
      ],
      rows,
      { className: "stacked" },
    );
  }

  // What it has written, also where its run is in no folder that is read here.
  log(job) {
    const text = h("pre.log", { tabindex: "0", role: "log", "aria-label": "Log", "aria-live": "off" }, "Reading …");
    const read = async () => {
      try {
        const path = `/api/jobs/${quoted(job.id)}/log`;
        const answer = await get(path, { scheduler: job.scheduler, lines: LOG_LINES });
        fill(text, answer.text || "Nothing was written yet.");
        text.scrollTop = text.scrollHeight;
      } catch (error) {
        fill(text, error.message);
      }
    };
    const again = h("button", { type: "button", onclick: read }, "Read again");
    const close = h("button", { type: "button", onclick: () => box.close() }, "Close");
    const box = dialog(`Log of ${job.name ?? job.id}`, text, [again, close]);
    box.classList.add("wide");
    read();
  }

  async stop(job) {
    if (
      !(await confirm(
        "Stop this job?",
        `${job.name ?? job.id} writes a checkpoint and ends; it can be resumed.`,
        "Stop",
      ))
    )
      return;
    try {
      await post(`/api/jobs/${quoted(job.id)}/stop`, { scheduler: job.scheduler });
      announce(`${job.name ?? job.id} is being stopped`);
      this.load();
    } catch (error) {
      fill(this.wrong, warning(error.message));
    }
  }

  destroy() {
    this.gone = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.onVisibility);
    this.unregister();
  }
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1);
}

// The states of jobs in the words of runs; a job that runs while its workers wait for room is waiting.
function stateOf(job) {
  if (job.state === "RUNNING") return job.waiting ? "waiting" : "running";
  return (
    { PENDING: "pending", STOPPED: "stopped", SUCCEEDED: "finished", FAILED: "failed" }[job.state] ??
    String(job.state).toLowerCase()
  );
}

function exit(job) {
  return job.exit_code === null || job.exit_code === undefined ? "" : `exit code ${job.exit_code}`;
}

function when(job) {
  const now = Date.now() / 1000;
  if (job.ended_at)
    return [
      ago(now - job.ended_at),
      job.submitted ? h("span.dim", {}, `, after ${duration(job.ended_at - job.submitted)}`) : null,
    ];
  return job.submitted ? h("span", { title: moment(job.submitted) }, `submitted ${ago(now - job.submitted)}`) : "–";
}

// What a scheduler has, in a line, and its nodes.
function capacity(scheduler, nodes, unfolded) {
  const title = scheduler.where && scheduler.where !== scheduler.name ? `, ${scheduler.where}` : "";
  const up = nodes.filter((one) => one.up);
  const text = !scheduler.nodes_known
    ? "does not say which nodes it has"
    : [`${up.length} ${up.length === 1 ? "node" : "nodes"}`, ...["CPU", "GPU"].map((name) => reserved(up, name))]
        .filter(Boolean)
        .join(", ");
  return h(
    "div.capacity",
    {},
    h("p", {}, h("strong", {}, scheduler.name), title, ": ", text),
    nodes.length > OPEN_NODES ? folded(scheduler.name, nodes, unfolded) : nodes.length > 0 && cards(nodes),
  );
}

function cards(nodes) {
  return h("ul.nodes", {}, nodes.slice(0, MOST_NODES).map(node));
}

function folded(name, nodes, unfolded) {
  const box = h(
    "details",
    { open: unfolded.has(name), ontoggle: () => (box.open ? unfolded.add(name) : unfolded.delete(name)) },
    h("summary", {}, `Nodes of ${name}`),
    cards(nodes),
    nodes.length > MOST_NODES && h("p.dim", {}, `and ${nodes.length - MOST_NODES} more nodes`),
  );
  return box;
}

// How much of a resource is reserved, over all nodes: "12 of 48 GPUs reserved".
function reserved(nodes, name) {
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const all = sum(nodes.map((one) => one.total[name] ?? 0));
  if (!all) return "";
  const what = `${name === "CPU" ? "CPU core" : name}${all === 1 ? "" : "s"}`;
  if (nodes.some((one) => !one.free)) return `${number(all)} ${what}`;
  return `${number(all - sum(nodes.map((one) => one.free[name] ?? 0)))} of ${number(all)} ${what} reserved`;
}

function node(one) {
  const reserved = ["CPU", "GPU"].map((name) => {
    const all = one.total?.[name];
    return all
      ? meter(
          name,
          one.free ? (all - (one.free[name] ?? 0)) / all : null,
          one.free ? `${number(all - (one.free[name] ?? 0))} of ${number(all)} reserved` : `${number(all)} in all`,
        )
      : null;
  });
  const busy = [
    known(one.cpu_percent) && meter("Load", one.cpu_percent / 100, `${Math.round(one.cpu_percent)} %`),
    one.memory && meter("Memory", one.memory[0] / one.memory[1], `${bytes(one.memory[0])} of ${bytes(one.memory[1])}`),
  ];
  return h(
    "li.node",
    {},
    h(
      "div.head",
      {},
      h("strong", {}, one.name ?? one.address ?? "node"),
      one.head && h("span.tag", {}, "head"),
      h("div.grow"),
      badge(one.up ? "running" : "lost"),
    ),
    one.address && one.address !== one.name && h("p.dim", {}, one.address),
    reserved,
    busy,
    (one.gpus ?? []).map(gpu),
    one.up && !one.total?.GPU && h("p.dim", {}, "No GPU"),
    one.problem && h("p.bad", {}, one.problem),
  );
}

// How busy a GPU is and how full its memory, whoever uses it.
function gpu(one, index) {
  const [used, all] = one.memory;
  const percent = known(one.percent) ? `${Math.round(one.percent)} %, ` : "";
  return h(
    "div",
    { title: one.name },
    meter(`GPU ${index}`, known(one.percent) ? one.percent / 100 : null, `${percent}${bytes(used)} of ${bytes(all)}`),
  );
}

function known(value) {
  return value !== null && value !== undefined;
}

function meter(name, share, text) {
  const bar = h("span.bar", { "aria-hidden": "true" }, h("span"));
  bar.firstChild.style.width = `${Math.min(100, 100 * (share ?? 0))}%`;
  return h("div.meter", {}, h("span", {}, name), bar, h("span.numbers", {}, text));
}

export function mount(root) {
  return new JobsView(root);
}
