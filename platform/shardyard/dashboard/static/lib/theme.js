// Light or dark: as the system says, unless a person chose. The choice stays in this browser.

const KEY = "shardyard-theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const watchers = new Set();

export const CHOICES = ["system", "light", "dark"];

export function chosen() {
  const value = stored();
  return CHOICES.includes(value) ? value : "system";
}

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // Storage may be forbidden; the system's choice is good enough.
  }
}

export function dark() {
  return chosen() === "system" ? system.matches : chosen() === "dark";
}

export function choose(value) {
  try {
    localStorage.setItem(KEY, value);
  } catch {
    // The choice then lasts until the page is closed.
  }
  apply(value);
}

export function next() {
  choose(CHOICES[(CHOICES.indexOf(chosen()) + 1) % CHOICES.length]);
}

export function apply(value = chosen()) {
  const isDark = value === "system" ? system.matches : value === "dark";
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  for (const watcher of watchers) watcher();
}

export function onTheme(action) {
  watchers.add(action);
  return () => watchers.delete(action);
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Colours of runs, told apart by eye on both grounds; the first eight also by people who see no red or green.
export function runColours() {
  return dark()
    ? [
        "#7aa2ff",
        "#f2a65a",
        "#4cc9b0",
        "#e879b9",
        "#c9d05c",
        "#a78bfa",
        "#63c5ea",
        "#f0736a",
        "#8fbf7f",
        "#c7a17a",
        "#9db2c9",
        "#e3c5f2",
      ]
    : [
        "#2f5bd0",
        "#c2600a",
        "#0b8a73",
        "#b8327f",
        "#7d7a00",
        "#6d3fc9",
        "#0a7ea4",
        "#c23b31",
        "#3d7a2e",
        "#7c5a35",
        "#50657d",
        "#8a4fa3",
      ];
}

system.addEventListener("change", () => apply());
