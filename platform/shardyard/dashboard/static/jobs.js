// The cluster: who waits for what and why, what runs where, and a way to stop it.

import { get, id as quoted, post } from "./api.js";
import { announce, command, confirm, fill, h } from "./dom.js";
import { ago, bytes, duration, number, whole } from "./format.js";
import { register } from "./keys.js";
import { link } from "./router.js";
import { badge, empty, failure, skeleton, warning } from "./states.js";
import { simpleTable } from "./table.js";

export const title = "Jobs";

const EVERY = 4000;
const OVER = ["finished", "failed", "stopped", "interrupted", "preempted", "succeeded"];

class JobsView {
  constructor(root) {
    this.root = root;
    this.wrong = h("div");
    this.place = h("div");
    fill(root, h("div.head", {}, h("h1", {}, "Jobs"), this.count = h("span.count"), h("div.grow"), h("a.button.primary.small", { href: "#/submit" }, "Submit a recipe")), this.wrong, this.place);
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
      this.draw(await get("/api/jobs"));
      fill(this.wrong);
    } catch (error) {
      if (this.drawn) fill(this.wrong, warning(error.message));
      else fill(this.place, failure("The cluster does not say how it is", error.message));
    }
    this.timer = setTimeout(() => this.load(), EVERY);
  }

  draw(answer) {
    const said = JSON.stringify(answer);
    if (said === this.said) return;
    this.said = said;
    this.drawn = true;
    if (!answer.available) {
      this.count.textContent = "";
      fill(this.place, empty("No cluster", answer.why || "The dashboard knows of no Ray cluster.", h("p", {}, "Start one on this machine, then this dashboard with its address:"), command("shardyard cluster up"), command("shardyard dashboard --address http://127.0.0.1:8265"),
        h("p.dim", {}, "Runs that `shardyard launch` started need no cluster and are listed under Runs.")));
      return;
    }
    const jobs = answer.jobs ?? [];
    const open = jobs.filter((job) => !OVER.includes(job.state));
    const over = jobs.filter((job) => OVER.includes(job.state));
    this.count.textContent = `${open.length} at work or waiting`;
    fill(this.place,
      h("section", { "aria-labelledby": "nodes" }, h("h2", { id: "nodes" }, "Nodes"), (answer.nodes ?? []).length ? h("ul.nodes", {}, answer.nodes.map(node)) : h("p.dim", {}, "The cluster names no nodes.")),
      h("section.panel", {}, h("h2", {}, "Queue"), open.length ? this.table(open, true) : h("p.dim", {}, "Nothing runs and nothing waits.")),
      over.length > 0 && h("section.panel", {}, h("h2", {}, "Ended"), this.table(over, false)));
  }

  table(jobs, open) {
    const rows = jobs.map((job) => [
      job.run ? h("a", { href: link(["run", job.run]) }, job.name ?? job.id) : job.name ?? job.id, badge(job.state), h("span.reason", {}, job.reason ?? job.message ?? ""),
      resources(job), when(job), open ? h("button.small", { type: "button", disabled: job.can_stop === false, onclick: () => this.stop(job) }, "Stop") : h("code", {}, job.id),
    ]);
    return simpleTable(open ? "Jobs in the queue" : "Ended jobs", ["Job", "State", open ? "Why" : "How it ended", "Takes", "When", ""], rows);
  }

  async stop(job) {
    if (!(await confirm("Stop this job?", `${job.name ?? job.id} writes a checkpoint and ends; it can be resumed.`, "Stop"))) return;
    try {
      await post(`/api/jobs/${quoted(job.id)}/stop`);
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

function resources(job) {
  const parts = [job.workers && `${whole(job.workers)} workers`, job.gpus && `${whole(job.gpus)} GPUs`].filter(Boolean);
  return parts.join(", ") || "–";
}

function when(job) {
  const now = Date.now() / 1000;
  if (job.ended) return h("span", {}, ago(now - job.ended), job.started ? h("span.dim", {}, `, took ${duration(job.ended - job.started)}`) : null);
  if (job.started) return `since ${duration(now - job.started)}`;
  return job.submitted ? `submitted ${ago(now - job.submitted)}` : "–";
}

function node(one) {
  const ok = !one.state || /alive|up|ok|running/i.test(one.state);
  return h("li.node", {}, h("div.head", {}, h("strong", {}, one.name ?? one.id ?? "node"), one.head && h("span.tag", {}, "head"), h("div.grow"), badge(ok ? "running" : "lost")),
    meter("CPU", one.cpus_used, one.cpus, number), one.gpus ? meter(one.gpu_name ? `GPU, ${one.gpu_name}` : "GPU", one.gpus_used, one.gpus, number) : h("p.dim", {}, "No GPU"),
    one.memory_bytes ? meter("Memory", one.memory_used_bytes, one.memory_bytes, bytes) : null, one.problem && h("p.bad", {}, one.problem));
}

function meter(name, used, all, format) {
  if (all === undefined || all === null) return null;
  const bar = h("span.bar", { "aria-hidden": "true" }, h("span"));
  bar.firstChild.style.width = `${all ? Math.min(100, (100 * (used ?? 0)) / all) : 0}%`;
  return h("div.meter", {}, h("span", {}, name), bar, h("span.numbers", {}, `${format(used ?? 0)} of ${format(all)}`));
}

export function mount(root) {
  return new JobsView(root);
}
