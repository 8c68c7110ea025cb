"""Keeps the results of a run of the matrix in tests/breadth/results.jsonl, from which docs/families.md is written.

Cells that the run did not have keep their earlier result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from importlib import metadata
from pathlib import Path

from breadth.matrix import cells, in_short, objectives, read
from shardyard.objectives.registry import objective_spec
from shardyard.objectives.spec import PRETRAINING
from shardyard.recipe.families import families_with, families_with_head

KEPT = Path(__file__).parent / "results.jsonl"
FIELDS = ("objective", "family", "status", "step", "error", "note")
# Places in temporary folders.
_PATHS = re.compile(r"/\S+/recipe\.yaml(:\d+)?: ")
PACKAGES = ("transformers", "torch", "deepspeed")


def _with_head(objective: str) -> int:
    """How many model types of transformers have the head; a head of all kinds of models does not count."""
    spec = objective_spec(objective)
    of_all_kinds = spec.head == PRETRAINING or (spec.auto_class == "AutoModel" and not spec.tables)
    return len((families_with if of_all_kinds else families_with_head)(spec))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results of `python -m breadth.matrix`")
    parser.add_argument("--before", type=Path, help="results of an earlier run to compare with")
    given = parser.parse_args()
    kept = read(KEPT)
    results = {**kept, **read(given.results)}
    earlier = read(given.before) if given.before else kept
    head = {"measured on": datetime.date.today().isoformat(), **{name: metadata.version(name) for name in PACKAGES}}
    heads = {name: _with_head(name) for name in objectives()}
    short = [name for name in objectives() if in_short(name)]
    lines: list[dict[str, object]] = [{**head, "heads": heads, "short": short}]
    for cell in cells(objectives()):
        if cell in results:
            line = {name: _PATHS.sub("", str(results[cell].get(name, ""))) for name in FIELDS}
            old = earlier.get(cell, {})
            before = str(old.get("status" if given.before else "before", ""))
            lines.append({**line, **({"before": before} if before else {})})
    KEPT.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
