"""Writes docs/families.md from the results in tests/breadth; `make breadth` and `make schema` run it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "tests" / "breadth" / "results.jsonl"
PROBED = REPOSITORY / "tests" / "breadth" / "isolation.jsonl"
PAGE = REPOSITORY / "docs" / "families.md"
Result = dict[str, str]

HEAD = """# Families: what trains

`make breadth` runs every model type of the installed transformers under every objective whose head it has, in a small
configuration: as many layers as show every kind of layer, few weights. Each cell validates the recipe, plans, trains
two steps at ZeRO stage 2 with a break and a resume between them and two at stage 3, compares the losses of both (1e-4),
evaluates, exports, loads the export with its `Auto…` class, measures it again, and generates with a cache and without.
Cells of an objective whose models another objective trains too (SHORT) leave out stage 3 and the resume;
`instruction`, `preference` and `distillation` train the models of `causal_lm` and have no row.

Configurations are found automatically for text and for classes of pictures and recordings: one is *valid* if plain
transformers itself does a forward and a backward pass with it. Models whose parts and processor have to fit each other
(`vision_language`, `contrastive`, `masked_image`, most of sound) have small configurations written by hand, for the
model types that the objective takes; tests compare their losses with those of transformers. *Head* counts the model
types of transformers that have the head, *run* those that the objective takes and that were run. *Refused* are families
whose training would be wrong, as their plan finds out: those that see later tokens, or whose documents nothing keeps
apart. The share is that of the valid ones that are not refused. *Before* is the first run of the matrix, before the
first repairs.
"""
ISOLATION = """
## Isolation and causality

What keeps the documents of a row apart in the causal families, as the probes of a plan find out; no family has a leak
that is not refused. Which family needs what is in [isolation](develop/isolation.md).

| isolation | families |
|---|---|
"""
# What a line of isolation.jsonl comes to.
OUTCOMES = {
    "positions": "position ids that begin again",
    "mask": "a mask of each document",
    "rows": "one document a row",
    "refused": "refused",
    "invalid": "transformers cannot build its default configuration",
}


def read(path: Path = RESULTS) -> tuple[dict[str, Any], list[Result]]:
    """The head of the file (date, versions, model types with each head) and the results."""
    head, *results = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return head, results


def page(head: dict[str, Any], results: list[Result]) -> str:
    """The whole page."""
    short = ", ".join(f"`{name}`" for name in head["short"])
    about = ", ".join(f"{name} {value}" for name, value in head.items() if isinstance(value, str))
    text = f"{HEAD.replace('SHORT', short)}\nMeasured: {about}.\n\n".replace("Measured: measured on", "Measured on")
    text += (
        "| objective | head | run | valid | refused | before | passed | share |\n|---|---|---|---|---|---|---|---|\n"
    )
    objectives = list(dict.fromkeys(result["objective"] for result in results))
    for objective in objectives:
        text += _rate(objective, head["heads"][objective], [one for one in results if one["objective"] == objective])
    text += ISOLATION + _isolation()
    text += "\n## What fails\n\n| objective | model type | step | why |\n|---|---|---|---|\n"
    text += _lines(results, "failed", lambda one: f"| {one['step']} | {_cell(one['error'])} |")
    text += "\n## What is refused\n\n| objective | model type | why |\n|---|---|---|\n"
    text += _lines(results, "refused", lambda one: f"| {_cell(one['error'])} |")
    text += (
        "\n## What transformers does not train\n\nNo configuration was found with which plain transformers trains.\n\n"
    )
    text += "| objective | model type | its message |\n|---|---|---|\n"
    text += _lines(results, "invalid", lambda one: f"| {_cell(one['error'])} |")
    text += "\n## What passes with a remark\n\n| objective | model type | remark |\n|---|---|---|\n"
    remarked = [result for result in results if result.get("note")]
    text += _lines(remarked, "passed", lambda one: f"| {_cell(one['note'])} |")
    text += "\n## What passes\n"
    for objective in objectives:
        names = [_name(one) for one in results if one["objective"] == objective and one["status"] == "passed"]
        text += f"\n**{objective}** ({len(names)}): {', '.join(names)}.\n"
    return text


def _rate(objective: str, heads: int, results: list[Result]) -> str:
    valid = [result for result in results if result["status"] != "invalid"]
    refused = sum(result["status"] == "refused" for result in valid)
    before = [result["before"] for result in valid if result.get("before")]
    passed = sum(result["status"] == "passed" for result in valid)
    share = f"{passed / (len(valid) - refused):.0%}" if len(valid) > refused else "–"
    then = f"{before.count('passed')}" if before else "new"
    numbers = " | ".join(str(number) for number in (heads, len(results), len(valid), refused or "–", then, passed))
    return f"| `{objective}` | {numbers} | {share} |\n"


def _isolation() -> str:
    lines = map(json.loads, PROBED.read_text(encoding="utf-8").splitlines())
    counts = Counter(_outcome(line) for line in lines)
    return "".join(f"| {text} | {counts[name]} |\n" for name, text in OUTCOMES.items())


def _outcome(line: dict[str, Any]) -> str:
    if line["invalid"]:
        return "invalid"
    return "refused" if line["findings"]["refusals"] else line["findings"]["isolation"] or "refused"


def _lines(results: Iterable[Result], status: str, rest: object) -> str:
    assert callable(rest)
    return "".join(
        f"| {result['objective']} | {_name(result)} {rest(result)}\n"
        for result in results
        if result["status"] == status
    )


def _name(result: Result) -> str:
    return f"`{result['family']}`"


def _cell(text: str) -> str:
    """Text within a table: no bars, no code, no long tails."""
    flat = " ".join(text.replace("|", "/").replace("`", "'").split())
    return flat if len(flat) <= 160 else flat[:159] + "…"


if __name__ == "__main__":
    PAGE.write_text(page(*read()), encoding="utf-8")
