// The checkpoints of a run: whether each is whole, how large it is, and how to go on from it.

import { command, fill, h } from "../lib/dom.js";
import { ago, bytes, moment, NOTHING, whole } from "../lib/format.js";
import { badge, empty } from "../lib/states.js";
import { simpleTable } from "../lib/table.js";

const MEANING = { whole: "finished", partial: "pending", damaged: "failed" };

export class Checkpoints {
  constructor(place, view) {
    this.place = place;
    this.view = view;
    this.told();
  }

  told() {
    const list = [...(this.view.run.checkpoints ?? [])].sort((a, b) => b.step - a.step);
    if (!list.length) {
      fill(
        this.place,
        empty(
          "No checkpoints",
          "None was written yet, or those that were are gone. `checkpoint.every` in the recipe says how often one is.",
        ),
      );
      return;
    }
    const newest = list.find((one) => one.state === "whole");
    const rows = list.map((one) => [whole(one.step), state(one.state), bytes(one.bytes), when(one.created)]);
    fill(
      this.place,
      h(
        "section.panel",
        {},
        h("h2", {}, "Checkpoints"),
        simpleTable("Checkpoints", ["Step", "State", "Size", "Written"], rows, { numeric: [2] }),
        h(
          "p.dim",
          {},
          `${bytes(list.reduce((sum, one) => sum + (one.bytes ?? 0), 0))} in all. Damaged ones are passed over when a run is resumed.`,
        ),
      ),
      newest &&
        h(
          "section.panel",
          {},
          h("h2", {}, "From the newest whole one"),
          ["resume", "try", "export"]
            .map((purpose) => this.view.run.commands?.[purpose])
            .filter(Boolean)
            .map(command),
        ),
    );
  }

  destroy() {}
}

function state(name) {
  const shown = badge(MEANING[name] ?? "unknown");
  shown.lastChild.textContent = name;
  return shown;
}

function when(created) {
  if (!created) return NOTHING;
  const date = typeof created === "number" ? created : new Date(created).getTime() / 1000;
  return h("span", { title: moment(created) }, ago(Date.now() / 1000 - date));
}
