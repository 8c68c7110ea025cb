"""The table of docs/reliability/chaos.md, from the results of the matrix.

python -m chaos.keep [--results FILE]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from chaos.cell import Cell
from chaos.matrix import RESULTS, ROOT, cells, read

PAGE = ROOT / "docs" / "reliability" / "chaos.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
COLUMNS = (
    *("fault", "how injected", "detected after", "next step after", "steps lost"),
    *("went on; what it said", "final state", "left over", "date"),
)


def row(cell: Cell, found: Mapping[str, object] | None) -> str:
    """One line of the table; a cell that was not run says so."""
    if found is None:
        return f"| {cell.fault} | {cell.how} | not run |{' |' * (len(COLUMNS) - 3)}"
    left = found["left"]
    assert isinstance(left, list)
    values = [
        cell.fault,
        cell.how,
        _seconds(found["detected"]),
        _seconds(found["next_step"]),
        "" if found["lost"] is None else str(found["lost"]),
        _shown("; ".join(filter(None, (str(found["went_on"]), str(found["told"]))))),
        str(found["state"]) + ("" if found["good"] else " **(not as it should be)**"),
        ", ".join(left) or "nothing",
        str(found["date"]),
    ]
    return "| " + " | ".join(value.replace("|", "/").replace("\n", " ").replace("<", "‹") for value in values) + " |"


def _shown(text: str) -> str:
    """Without what differs from machine to machine: paths, and ids of runs."""
    text = re.sub(r"/\S*/\.chaos\S*", "RUN", text)
    text = re.sub(r"(?<![\w.])/(?:[\w.-]+/){2,}[\w.-]*", "PATH", text)
    if text.count("`") % 2:
        text = text.rpartition("`")[0] + "…"
    return re.sub(r"\btiny-\d{8}-\d{6}-\w{4}\b", "RUN", text).strip("; ")


def _seconds(value: object) -> str:
    return f"{value:.1f} s" if isinstance(value, int | float) else ""


def table(results: Mapping[str, Mapping[str, object]]) -> str:
    """All cells, those of a class together."""
    lines = []
    for kind in dict.fromkeys(cell.kind for cell in cells()):
        lines += [f"\n### Faults of {kind}\n", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [row(cell, results.get(cell.name)) for cell in cells() if cell.kind == kind]
    return "\n".join(lines)


def main() -> int:
    """Rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(read(options.results))}\n\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
