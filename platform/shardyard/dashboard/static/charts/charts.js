// Charts: plotly in the page's colours, as cards with a title, an image and a table to take away.

import { download, fill, h } from "../lib/dom.js";
import { csv } from "../lib/format.js";
import { colour, onTheme } from "../lib/theme.js";

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
let loading = null;

// plotly is large and is read once: when the page has nothing else to do, or a chart is about to be shown.
export function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/static/vendor/plotly.min.js" });
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      loading = null;
      script.remove();
      reject(
        new Error("The charts cannot be drawn: plotly was not sent by the server. Is the package `plotly` installed?"),
      );
    };
    document.head.append(script);
  });
  return loading;
}

export class Chart {
  // `draw()` → {traces, layout}, asked again when the colours change; `rows()` → rows of the CSV, titles first.
  constructor({
    title,
    subtitle = "",
    draw,
    rows,
    describe = undefined,
    height = 240,
    onZoom = undefined,
    onPick = undefined,
    large = false,
    onLarge = undefined,
    tools = [],
  }) {
    this.title = title;
    this.draw = draw;
    this.rows = rows;
    this.describe = describe;
    this.height = height;
    this.onZoom = onZoom;
    this.onPick = onPick;
    this.onLarge = onLarge;
    // What its owner draws it from.
    this.series = undefined;
    this.metrics = undefined;
    this.plot = h("div.plot", { role: "img", "aria-label": `Chart of ${title}` });
    this.plot.style.height = `${height}px`;
    this.note = h("span.note", {}, subtitle);
    this.element = h(
      "figure.chart",
      {},
      h(
        "figcaption",
        {},
        h("span.title", { title }, title),
        this.note,
        h(
          "span.tools",
          {},
          tools,
          this.tool("PNG", "image", () => this.png()),
          this.tool("CSV", "table", () => this.table()),
          (this.larger = this.tool("⤢", "larger or smaller", () =>
            this.enlarge(!this.element.classList.contains("large")),
          )),
        ),
      ),
      this.plot,
    );
    if (large) this.enlarge(true);
    this.resize = new ResizeObserver(
      () => this.drawn && this.plot.isConnected && this.plot.clientWidth && window.Plotly.Plots.resize(this.plot),
    );
    this.resize.observe(this.plot);
    this.stopTheme = onTheme(() => this.drawn && this.render());
    // It comes while the numbers do; if it does not, drawing says so.
    plotly().catch(() => {});
  }

  tool(text, what, action) {
    const button = h(
      "button.ghost.tiny",
      { type: "button", "aria-label": `${this.title}: ${what}`, title: what, onclick: () => action(button) },
      text,
    );
    return button;
  }

  async render() {
    const library = await plotly();
    if (this.gone) return;
    const { traces, layout = {} } = this.draw();
    await library.react(this.plot, traces, merged(base(), layout), {
      displayModeBar: false,
      responsive: false,
      doubleClick: false,
    });
    if (this.gone) return;
    if (this.describe) this.plot.setAttribute("aria-label", `Chart of ${this.title}: ${this.describe()}`);
    if (!this.drawn) this.listen();
    this.drawn = true;
    this.plot.dataset.drawn = "yes";
  }

  listen() {
    this.plot.on("plotly_relayout", (change) => {
      if (change["xaxis.range[0]"] !== undefined) this.onZoom?.(change["xaxis.range[0]"], change["xaxis.range[1]"]);
    });
    this.plot.on("plotly_doubleclick", () => this.onZoom?.(null, null));
    this.plot.on("plotly_click", (event) => this.onPick?.(event.points[0]));
  }

  async png() {
    const image = await window.Plotly.toImage(this.plot, {
      format: "png",
      width: Math.max(800, this.plot.clientWidth),
      height: Math.max(450, this.plot.clientHeight),
      scale: 2,
    });
    download(`${fileName(this.title)}.png`, image);
  }

  table() {
    download(`${fileName(this.title)}.csv`, csv(this.rows()));
  }

  enlarge(large) {
    this.element.classList.toggle("large", large);
    this.larger.setAttribute("aria-pressed", String(large));
    this.plot.style.height = large ? `${Math.max(420, Math.round(innerHeight * 0.65))}px` : `${this.height}px`;
    this.onLarge?.(large);
  }

  // Beside the title: a text, or nodes.
  say(text) {
    fill(this.note, text);
  }

  destroy() {
    this.gone = true;
    this.resize.disconnect();
    this.stopTheme();
    if (this.drawn) window.Plotly.purge(this.plot);
    this.element.remove();
  }
}

export function fileName(text) {
  return text.replaceAll(/[^A-Za-z0-9._-]+/g, "-").replaceAll(/^-|-$/g, "") || "chart";
}

function axis() {
  return {
    gridcolor: colour("grid"),
    linecolor: colour("line-strong"),
    zerolinecolor: colour("grid"),
    tickcolor: colour("line-strong"),
    automargin: true,
    exponentformat: "SI",
    minexponent: 4,
    separatethousands: true,
    title: { font: { size: 11, color: colour("text-dim") }, standoff: 6 },
    tickfont: { size: 11, color: colour("text-dim") },
    hoverformat: ".5~g",
    spikethickness: 1,
    spikecolor: colour("text-dim"),
    spikedash: "dot",
  };
}

function base() {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: FONT, size: 12, color: colour("text") },
    margin: { l: 44, r: 10, t: 6, b: 30 },
    showlegend: false,
    hovermode: "x",
    dragmode: "zoom",
    hoverlabel: {
      bgcolor: colour("surface"),
      bordercolor: colour("line-strong"),
      font: { family: FONT, size: 12, color: colour("text") },
      namelength: 40,
    },
    xaxis: axis(),
    yaxis: axis(),
    legend: { orientation: "h", y: -0.2, font: { size: 11 } },
  };
}

function merged(into, from) {
  for (const [key, value] of Object.entries(from)) {
    const plain = value && typeof value === "object" && !Array.isArray(value);
    into[key] = plain ? merged(into[key] ?? {}, value) : value;
  }
  return into;
}

// Any SVG of the page as a PNG file, in the colours that it has now.
export async function svgPng(element, name) {
  const { width, height } = element.getBoundingClientRect();
  const copy = element.cloneNode(true);
  inline(element, copy);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  const source = new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
  const url = URL.createObjectURL(source);
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = h("canvas", { width: Math.ceil(width * 2), height: Math.ceil(height * 2) });
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = colour("surface");
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  URL.revokeObjectURL(url);
  download(`${fileName(name)}.png`, canvas.toDataURL("image/png"));
}

const DRAWN = [
  "fill",
  "stroke",
  "stroke-width",
  "opacity",
  "font-size",
  "font-family",
  "text-anchor",
  "font-weight",
  "stroke-opacity",
];

function inline(from, to) {
  const style = getComputedStyle(from);
  for (const name of DRAWN) to.setAttribute(name, style.getPropertyValue(name));
  Array.from(from.children).forEach((child, index) => inline(child, to.children[index]));
}

// A card for a drawing that is not plotly's: an SVG with its table.
export function drawing(title, image, rows, ...more) {
  const tool = (text, what, action) =>
    h("button.ghost.tiny", { type: "button", "aria-label": `${title}: ${what}`, title: what, onclick: action }, text);
  return h(
    "figure.chart",
    {},
    h(
      "figcaption",
      {},
      h("span.title", {}, title),
      h(
        "span.tools",
        {},
        tool("PNG", "image", () => svgPng(image, title)),
        tool("CSV", "table", () => download(`${fileName(title)}.csv`, csv(rows()))),
      ),
    ),
    more,
    h("div.scroll-x", { tabindex: "0", role: "region", "aria-label": title }, image),
  );
}
