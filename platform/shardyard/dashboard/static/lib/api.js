// Questions to the server, and the stream of what is new. Nothing is asked of any other machine.

export class ApiError extends Error {
  constructor(status, answer) {
    super(answer.error || `The server answered ${status}.`);
    this.status = status;
    this.field = answer.field;
    this.position = answer.position;
    this.nearest = answer.nearest;
  }
}

let session = null;
const watchers = new Set();
let reachable = true;

// Called with false when the server stops answering and with true when it is back.
export function onReachable(action) {
  watchers.add(action);
}

function setReachable(value) {
  if (reachable === value) return;
  reachable = value;
  for (const watcher of watchers) watcher(value);
  if (!value) setTimeout(ping, 1500);
}

async function ping() {
  try {
    const answer = await fetch("/api/session", { cache: "no-store" });
    if (answer.ok) {
      session = await answer.json();
      setReachable(true);
      return;
    }
    if (answer.status === 401 || answer.status === 403) {
      location.reload();
      return;
    }
  } catch {
    // Still gone.
  }
  setTimeout(ping, 2000);
}

export function address(path, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value === undefined || value === null || value === "") continue;
    query.set(name, Array.isArray(value) ? value.join(",") : value);
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

export const id = encodeURIComponent;

export async function get(path, params = {}, signal = undefined) {
  return ask(address(path, params), { signal, headers: { Accept: "application/json" } });
}

export async function post(path, body = {}) {
  const { csrf } = await who();
  const headers = { "Content-Type": "application/json", Accept: "application/json", "X-Shardyard-CSRF": csrf };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body) });
}

// What the server says about itself: {csrf, version, runs_dir, cluster}.
export async function who() {
  session ??= await get("/api/session");
  return session;
}

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    setReachable(false);
    throw new ApiError(0, { error: "The dashboard's server does not answer." });
  }
  setReachable(true);
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, body);
  return body;
}

// Events from now on, with cursors, so that after a break only what is new travels. `describe()` gives the parameters
// of the next connection; a hidden page holds none.
export class Stream {
  constructor(describe, handlers) {
    this.describe = describe;
    this.handlers = handlers;
    this.source = null;
    this.retry = 0;
    this.closed = false;
    this.onVisibility = () => (document.hidden ? this.pause() : this.open());
    document.addEventListener("visibilitychange", this.onVisibility);
    this.open();
  }

  open() {
    if (this.closed || this.source || document.hidden) return;
    clearTimeout(this.retry);
    this.source = new EventSource(address("/api/stream", { version: this.version, ...this.describe() }));
    for (const [name, handler] of Object.entries(this.handlers)) {
      this.source.addEventListener(name, (event) => {
        const news = JSON.parse(event.data);
        if (news.version !== undefined) this.version = news.version;
        handler(news);
      });
    }
    this.source.onopen = () => setReachable(true);
    this.source.onerror = () => {
      this.pause();
      ask("/api/session", {}).catch(() => {});
      this.retry = setTimeout(() => this.open(), 2000);
    };
  }

  pause() {
    this.source?.close();
    this.source = null;
  }

  restart() {
    this.pause();
    this.open();
  }

  close() {
    this.closed = true;
    clearTimeout(this.retry);
    document.removeEventListener("visibilitychange", this.onVisibility);
    this.pause();
  }
}
