// Elements from descriptions. Text always becomes a text node, so that no data is ever read as HTML.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "selected", "indeterminate"]);

// h("button.small", {onclick, title}, "Stop"): children are texts, nodes, lists of them, or null.
export function h(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  return filled(document.createElement(tag || "div"), classes, attributes, children);
}

export function svg(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), classes, attributes, children);
}

function filled(element, classes, attributes, children) {
  for (const name of classes) element.classList.add(name);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// Sentences with `commands` between backticks, which are shown as such.
export function prose(text) {
  return String(text)
    .split(/`([^`]+)`/)
    .map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

// A field with its label above or before it.
export function field(label, control, { hint = undefined, inline = false } = {}) {
  // Else the options of a list would count to its name.
  const named = control.matches("input, select, textarea") ? control : control.querySelector("input");
  if (!named.hasAttribute("aria-label")) named.setAttribute("aria-label", label);
  return h(
    inline ? "label.field.inline" : "label.field",
    {},
    h("span.label", {}, label),
    control,
    hint && h("span.hint", {}, hint),
  );
}

export function select(options, value, onchange, attributes = {}) {
  const items = options.map((option) => {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    return h("option", { value: key, selected: key === value }, text);
  });
  return h("select", { onchange: (event) => onchange(event.target.value), ...attributes }, items);
}

export function toggle(label, checked, onchange, attributes = {}) {
  const box = h("input", { type: "checkbox", checked, onchange: () => onchange(box.checked), ...attributes });
  return h("label.toggle", {}, box, h("span", {}, label));
}

// Say something to people who do not see the page.
export function announce(text) {
  const region = document.getElementById("live");
  if (region && region.textContent !== text) region.textContent = text;
}

export function debounce(action, milliseconds) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

// At most once in so many milliseconds, and once more at the end.
export function throttle(action, milliseconds) {
  let timer = 0;
  let last = 0;
  const often = () => {
    if (timer) return;
    timer = setTimeout(
      () => {
        timer = 0;
        last = Date.now();
        action();
      },
      Math.max(0, milliseconds - (Date.now() - last)),
    );
  };
  often.cancel = () => clearTimeout(timer);
  return often;
}

export function download(name, content, type = "text/csv;charset=utf-8") {
  const url =
    typeof content === "string" && content.startsWith("data:")
      ? content
      : URL.createObjectURL(new Blob([content], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  if (url.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export async function copy(text, button) {
  await navigator.clipboard.writeText(text);
  announce("Copied");
  if (!button) return;
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}

// Text as one word of a command.
export function shell(text) {
  return /^[\w.=/:@%+,~-]+$/.test(text) && !text.startsWith("~") ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// A command to type, with a button that copies it.
export function command(text) {
  const button = h(
    "button.ghost.small",
    { type: "button", onclick: () => copy(text, button), "aria-label": `Copy: ${text}` },
    "Copy",
  );
  return h("div.command", {}, h("code", {}, text), button);
}

export function dialog(title, body, actions = []) {
  const box = h("dialog", { "aria-label": title }, h("h2", {}, title), body, h("div.actions", {}, actions));
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close());
  document.body.append(box);
  box.showModal();
  return box;
}

// Ask before something that cannot be undone; resolves to true or false.
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    const box = dialog(title, h("p", {}, text), [
      h("button", { type: "button", onclick: () => box.close() }, "Cancel"),
      h(
        "button.danger",
        {
          type: "button",
          onclick: () => {
            box.returnValue = "yes";
            box.close("yes");
          },
        },
        action,
      ),
    ]);
    box.addEventListener("close", () => resolve(box.returnValue === "yes"));
  });
}
