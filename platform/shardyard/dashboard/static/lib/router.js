// The address of a view, #/run/ID?tab=logs, holds all of its state: a reload or a copied link shows the same.

export function route(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  return { path: path.split("/").filter(Boolean).map(decoded), params: new URLSearchParams(query) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function link(path, params = {}) {
  const query = new URLSearchParams(
    Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== ""),
  );
  // Commas and colons are readable and allowed in a fragment.
  const text = query.toString().replaceAll("%2C", ",").replaceAll("%3A", ":").replaceAll("%2F", "/");
  return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

// Change parameters of the address without drawing the view anew; "" and null remove one.
export function setParams(changes, { push = false } = {}) {
  const { path, params } = route();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") params.delete(name);
    else params.set(name, value);
  }
  const address = link(path, Object.fromEntries(params));
  if (address === location.hash) return;
  history[push ? "pushState" : "replaceState"](null, "", address);
}

export function go(path, params) {
  location.hash = link(path, params);
}

export function onChange(action) {
  addEventListener("hashchange", action);
  // Going back over a pushed state changes the fragment too, which is told by hashchange.
}
