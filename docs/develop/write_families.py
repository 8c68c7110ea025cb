"""Writes docs/families.md from tests/breadth/results.jsonl; `make breadth` and `make schema` run it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "tests" / "breadth" / "results.jsonl"
PAGE = REPOSITORY / "docs" / "families.md"
Result = dict[str, str]

HEAD = """# Families: what trains

`make breadth` runs every model type of the installed transformers under every objective whose head it has, in a small
configuration that is found automatically: as many layers as show every kind of layer, few weights. Each cell validates
the recipe, plans, trains two steps at ZeRO stage 2 with a break and a resume between them and two at stage 3, compares
the losses of both (1e-4), evaluates, exports, loads the export with its `Auto…` class, measures it again, and generates
with a cache and without. Objectives that share a head (`instruction`, `preference` and `distillation` train the models
of `causal_lm`) have one row.

What keeps the documents of a row apart in each causal family, and which families are refused because they are not
causal, is in [isolation](develop/isolation.md). Objectives without a row here have not been measured by the matrix yet.

A configuration counts as *valid* if plain transformers itself does a forward and a backward pass with it. *Before* is
the first run of the matrix, on the same day as the first repairs.
"""


def read(path: Path = RESULTS) -> tuple[dict[str, str], list[Result]]:
    """The head of the file (date and versions) and the results."""
    head, *results = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return head, results


def page(head: dict[str, str], results: list[Result]) -> str:
    """The whole page."""
    remark = head.get("remark")
    text = HEAD + "\n" + ", ".join(f"{name} {value}" for name, value in head.items() if name != "remark")
    text += f"; {remark}.\n\n" if remark else ".\n\n"
    text += "| objective | model types | valid | passed before | passed | share |\n|---|---|---|---|---|---|\n"
    objectives = list(dict.fromkeys(result["objective"] for result in results))
    for objective in objectives:
        text += _rate(objective, [result for result in results if result["objective"] == objective])
    text += "\n## What fails\n\n| objective | model type | step | why |\n|---|---|---|---|\n"
    text += _lines(results, "failed", lambda one: f"| {one['step']} | {_cell(one['error'])} |")
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


def _rate(objective: str, results: list[Result]) -> str:
    valid = [result for result in results if result["status"] != "invalid"]
    before = [result["before"] for result in valid if result.get("before")]
    passed = sum(result["status"] == "passed" for result in valid)
    share = f"{passed / len(valid):.0%}" if valid else "–"
    then = f"{before.count('passed')}" if before else "new"
    return f"| `{objective}` | {len(results)} | {len(valid)} | {then} | {passed} | {share} |\n"


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
