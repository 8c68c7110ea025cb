// How evenly the tokens are spread over the experts of a mixture: a heat map of layers by experts, at one step.

import { get, id as quoted } from "../lib/api.js";
import { drawing } from "../charts/charts.js";
import { fill, h, svg } from "../lib/dom.js";
import { count, percent, whole } from "../lib/format.js";
import { setParams, route } from "../lib/router.js";
import { empty, failure } from "../lib/states.js";
import { dark, onTheme } from "../lib/theme.js";

const LEFT = 64;
const TOP = 22;

export class Experts {
  constructor(place, view) {
    this.place = place;
    this.view = view;
    this.step = route().params.get("step");
    this.stopTheme = onTheme(() => this.answer && this.draw());
    this.load();
  }

  async load() {
    try {
      this.answer = await get(`/api/runs/${quoted(this.view.id)}/experts`, { step: this.step });
    } catch (error) {
      fill(this.place, failure("The balance of the experts cannot be read", error.message));
      return;
    }
    this.draw();
  }

  draw() {
    const { layers = [], steps = [] } = this.answer;
    const table = (this.answer.table ?? []).map((row) => row.map((value) => value ?? 0));
    if (!table.length) {
      fill(this.place, empty("No counts yet", "Tokens of each expert are counted when the model is evaluated."));
      return;
    }
    const experts = Math.max(...table.map((row) => row.length));
    const step = this.answer.step ?? this.step ?? steps.at(-1);
    const slider = h("input", {
      type: "range",
      min: 0,
      max: Math.max(0, steps.length - 1),
      value: Math.max(
        0,
        steps.findIndex((one) => String(one) === String(step)),
      ),
      "aria-label": "Step",
      onchange: () => this.at(steps[Number(slider.value)]),
    });
    fill(
      this.place,
      h(
        "section",
        {},
        h(
          "div.toolbar",
          {},
          h("label.field.inline", {}, h("span.label", {}, "Step"), slider, h("output", {}, whole(Number(step)))),
        ),
        drawing(
          "Tokens of each expert",
          heat(layers, table, experts, this.place.clientWidth - 24),
          () => rowsOf(layers, table, experts),
          h(
            "p.dim",
            {},
            `Share of its layer's tokens that each of ${experts} experts received in the evaluation. An even share is ${percent(1 / experts)}; a stronger colour is more.`,
          ),
        ),
        summary(layers, table),
      ),
    );
  }

  at(step) {
    this.step = step;
    setParams({ step });
    this.load();
  }

  destroy() {
    this.stopTheme();
  }
}

function heat(layers, table, experts, room) {
  const width = Math.max(10, Math.min(72, Math.floor((room - LEFT) / experts)));
  const height = table.length > 24 ? 16 : 30;
  const label = width >= 34 && height >= 24;
  const cells = table.flatMap((row, layer) => {
    const total = row.reduce((sum, value) => sum + value, 0) || 1;
    return row.map((value, expert) => {
      const part = value / total;
      const strength = Math.min(1, (part * experts) / 2);
      const at = { x: LEFT + expert * width, y: TOP + layer * height };
      return svg(
        "g",
        {},
        svg("rect.cell", {
          ...at,
          width: width - 1,
          height: height - 1,
          rx: 2,
          "fill-opacity": (0.06 + 0.9 * strength).toFixed(3),
        }),
        svg("title", {}, `layer ${layers[layer] ?? layer}, expert ${expert}: ${count(value)} tokens, ${percent(part)}`),
        label &&
          svg(
            "text",
            {
              x: at.x + width / 2 - 0.5,
              y: at.y + height / 2 + 4,
              "text-anchor": "middle",
              class: strength > (dark() ? 0.6 : 0.85) ? "on-dark" : "on-light",
            },
            percent(part, 0),
          ),
      );
    });
  });
  const rows = table.map(
    (row, layer) =>
      height >= 16 &&
      (table.length <= 40 || layer % 4 === 0) &&
      svg(
        "text",
        { x: LEFT - 8, y: TOP + layer * height + height / 2 + 4, "text-anchor": "end" },
        `layer ${layers[layer] ?? layer}`,
      ),
  );
  const columns = Array.from(
    { length: experts },
    (_, expert) =>
      expert % Math.ceil(28 / width) === 0 &&
      svg("text", { x: LEFT + expert * width + width / 2, y: TOP - 8, "text-anchor": "middle" }, String(expert)),
  );
  const size = { width: LEFT + experts * width + 4, height: TOP + table.length * height + 4 };
  return svg(
    "svg.heat",
    {
      ...size,
      viewBox: `0 0 ${size.width} ${size.height}`,
      role: "img",
      "aria-label": `Heat map of ${table.length} layers by ${experts} experts`,
    },
    rows,
    columns,
    cells,
  );
}

function summary(layers, table) {
  const worst = table
    .map((row, layer) => {
      const total = row.reduce((sum, value) => sum + value, 0) || 1;
      return {
        layer: layers[layer] ?? layer,
        max: (Math.max(...row) / total) * row.length,
        dead: row.filter((value) => value === 0).length,
      };
    })
    .sort((a, b) => b.max - a.max)[0];
  const dead = table.flat().filter((value) => value === 0).length;
  return h(
    "p",
    {},
    `Most uneven: layer ${worst.layer}, whose busiest expert has ${worst.max.toFixed(2)} times an even share. `,
    dead ? h("strong", {}, `${dead} experts received nothing.`) : "No expert is idle.",
  );
}

function rowsOf(layers, table, experts) {
  return [
    ["layer", ...Array.from({ length: experts }, (_, expert) => `expert ${expert}`)],
    ...table.map((row, layer) => [layers[layer] ?? layer, ...row]),
  ];
}
