// The frame around the views: navigation, the banner, shortcuts everywhere, and which view the address asks for.

import { onReachable, who } from "./lib/api.js";
import { plotly } from "./charts/charts.js";
import * as data from "./pages/data.js";
import * as compare from "./pages/compare.js";
import { announce, fill, h } from "./lib/dom.js";
import * as jobs from "./pages/jobs.js";
import * as keys from "./lib/keys.js";
import { go, onChange, route } from "./lib/router.js";
import * as run from "./run/run.js";
import * as runs from "./pages/runs.js";
import { failure } from "./lib/states.js";
import * as submit from "./pages/submit.js";
import * as sweeps from "./pages/sweeps.js";
import * as theme from "./lib/theme.js";

const VIEWS = { runs, run, compare, sweeps, jobs, submit, data };
const NAVIGATION = [
  ["runs", "Runs", "g r", ["run"]],
  ["compare", "Compare", "g c", []],
  ["sweeps", "Sweeps", "g s", []],
  ["jobs", "Jobs", "g j", []],
  ["submit", "Submit", "g n", ["data"]],
];

let mounted = null;
let turn = 0;

function drawNavigation(name) {
  fill(
    document.getElementById("nav"),
    h(
      "ul",
      {},
      NAVIGATION.map(([view, title, , others]) => {
        const current = view === name || others.includes(name);
        return h(
          "li",
          {},
          h("a", { href: `#/${view}`, "aria-current": current ? "page" : null, class: `nav-${view}` }, title),
        );
      }),
    ),
  );
}

function drawFoot(session) {
  const names = { system: "System", light: "Light", dark: "Dark" };
  const button = h("button.ghost.small", { type: "button", onclick: theme.next, title: "Change the colours (t)" });
  const say = () => fill(button, `Theme: ${names[theme.chosen()]}`);
  theme.onTheme(say);
  say();
  fill(
    document.getElementById("side-foot"),
    session &&
      h(
        "div.where",
        { title: session.runs_dir },
        h("span.label", {}, "Runs in"),
        h("code", {}, h("bdi", {}, session.runs_dir)),
      ),
    h(
      "div.buttons",
      {},
      button,
      h("button.ghost.small", { type: "button", onclick: keys.help, title: "Keyboard shortcuts (?)" }, "Keys"),
    ),
    session && h("div.version", {}, `Shardyard ${session.version}`),
  );
}

async function show() {
  const current = route();
  const name = current.path[0] ?? "runs";
  const view = VIEWS[name];
  const mine = ++turn;
  mounted?.destroy?.();
  mounted = null;
  drawNavigation(name);
  const root = h("div.view", { class: `view view-${view ? name : "none"}` });
  fill(document.getElementById("main"), root);
  scrollTo(0, 0);
  if (!view) {
    title("Nothing here");
    fill(
      root,
      failure(
        "There is no such page",
        `Nothing is called ${name} here.`,
        h("a.button", { href: "#/runs" }, "Show the runs"),
      ),
    );
    return;
  }
  title(view.title);
  try {
    const next = await view.mount(root, current, { title });
    if (mine === turn) mounted = next;
    else next?.destroy?.();
  } catch (error) {
    if (mine === turn) fill(root, failure("This page cannot be shown", error.message));
    if (!("status" in error)) throw error;
  }
}

function title(text) {
  document.title = `${text} · Shardyard`;
}

function watchServer() {
  const banner = document.getElementById("banner");
  onReachable((there) => {
    banner.hidden = there;
    fill(banner, there ? "" : "The dashboard's server does not answer. Trying again…");
    if (there) {
      announce("The server answers again");
      show();
    }
  });
}

theme.apply();
drawNavigation(route().path[0] ?? "runs");
drawFoot(null);
keys.register("Everywhere", [
  ...NAVIGATION.map(([view, text, shortcut]) => [shortcut, `Go to ${text}`, () => go([view])]),
  ["t", "Change between system, light and dark", theme.next],
  ["?", "Show this sheet", keys.help],
]);
keys.listen();
watchServer();
onChange(show);
show().then(() => (window.requestIdleCallback ?? setTimeout)(() => plotly().catch(() => {})));
who().then(drawFoot, () => {});
