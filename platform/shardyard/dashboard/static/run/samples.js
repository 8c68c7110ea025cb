// What the model wrote as it learned: one row a step, prompt by prompt.

import { get, id as quoted } from "../lib/api.js";
import { fill, h, select } from "../lib/dom.js";
import { real, whole } from "../lib/format.js";
import { route, setParams } from "../lib/router.js";
import { empty, failure } from "../lib/states.js";

export class Samples {
  constructor(place, view) {
    this.place = place;
    this.view = view;
    this.prompt = route().params.get("prompt");
    this.load();
  }

  async load() {
    try {
      const { samples = [] } = await get(`/api/runs/${quoted(this.view.id)}/samples`);
      this.samples = samples;
    } catch (error) {
      fill(this.place, failure("The samples cannot be read", error.message));
      return;
    }
    this.draw();
  }

  draw() {
    if (!this.samples.length) {
      fill(
        this.place,
        empty(
          "No samples",
          "`sample.prompts` in the recipe says what the model is asked, and `evaluate.every` how often.",
        ),
      );
      return;
    }
    const prompts = [...new Set(this.samples.map((sample) => sample.prompt ?? ""))];
    const chosen = this.prompt !== null && prompts.includes(this.prompt) ? this.prompt : prompts[0];
    const list = this.samples
      .filter((sample) => (sample.prompt ?? "") === chosen)
      .sort((a, b) => real(b.step) - real(a.step));
    fill(
      this.place,
      prompts.length > 1 &&
        h(
          "div.toolbar",
          {},
          h(
            "label.field.inline",
            {},
            h("span.label", {}, "Prompt"),
            select(
              prompts.map((prompt, index) => [String(index), prompt.slice(0, 90) || "(none)"]),
              String(prompts.indexOf(chosen)),
              (index) => this.choose(prompts[Number(index)]),
            ),
          ),
        ),
      h(
        "section.panel",
        {},
        h("h2", {}, "Samples"),
        h(
          "ol.samples",
          {},
          list.map((sample) =>
            h(
              "li",
              {},
              h("span.step", {}, `step ${whole(sample.step)}`),
              h("p", {}, h("span.prompt", {}, sample.prompt ?? ""), h("span.text", {}, String(sample.text ?? ""))),
            ),
          ),
        ),
      ),
    );
  }

  choose(prompt) {
    this.prompt = prompt;
    setParams({ prompt });
    this.draw();
  }

  told() {
    this.load();
  }

  destroy() {}
}
