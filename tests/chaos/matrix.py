"""The matrix of faults: `make chaos`. Resumable: a cell that has a line in the results is not run again.

    python -m chaos.matrix [--results FILE] [--only REGEX] [--again] [--jobs N] [--list]

`python -m chaos.keep` makes the table of docs/reliability/chaos.md from the results.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import date
from pathlib import Path

from chaos import files, heads, network, processes, ranks, services
from chaos.box import possible
from chaos.cell import Cell, Outcome, Where

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / ".chaos.jsonl"
WORK = ROOT / ".chaos"


def cells() -> list[Cell]:
    """All cells, in the order of the table."""
    return [*ranks.cells(), *processes.cells(), *network.cells(), *heads.cells(), *files.cells(), *services.cells()]


def read(path: Path) -> dict[str, dict[str, object]]:
    """The newest result of each cell."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def run(cell: Cell, where: Where) -> Outcome:
    """The outcome of a cell; its own failure is one too."""
    shutil.rmtree(where.cell, ignore_errors=True)
    try:
        return cell.run(where)
    except Exception as error:  # noqa: BLE001  one cell must not end the others
        traceback.print_exc()
        return Outcome("not at all", f"{type(error).__name__}: {str(error)[-300:]}", good=False)


def in_words(cell: Cell, found: Outcome) -> str:
    """One line about a cell."""
    times = [
        f"{name} {value:.1f} s"
        for name, value in (("detected", found.detected), ("next step", found.next_step))
        if value
    ]
    lost = [] if found.lost is None else [f"{found.lost} steps lost"]
    left = [f"left over: {', '.join(found.left)}"] if found.left else []
    parts = [found.went_on, *times, *lost, found.state, *left]
    return f"{'ok ' if found.good else 'BAD'} {cell.name}: {'; '.join(parts)}"


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the cells that have no result yet; returns 1 if one of them is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", default="", help="cells whose names match this expression")
    parser.add_argument("--again", action="store_true", help="also cells that have a result")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once: many of them mostly wait")
    parser.add_argument("--list", action="store_true", help="only print the cells")
    options = parser.parse_args()
    wanted = [cell for cell in cells() if re.search(options.only, cell.name)]
    if options.list:
        say("\n".join(f"{cell.name:24} {cell.fault}" for cell in wanted))
        return 0
    if not possible():
        say("`make chaos` needs root and unshare, nsenter, ip: it runs each cell in namespaces of its own.")
        return 2
    known = {} if options.again else read(options.results)
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True, check=False
    )

    def carry_out(cell: Cell) -> bool:
        if cell.name in known:
            return bool(known[cell.name]["good"])
        began = time.monotonic()
        found = run(cell, Where(WORK / cell.name, WORK))
        line = {"name": cell.name, **asdict(found), "seconds": time.monotonic() - began}
        line |= {"date": date.today().isoformat(), "commit": commit.stdout.strip()}
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        say(in_words(cell, found))
        if found.good:
            shutil.rmtree(WORK / cell.name, ignore_errors=True)
        return found.good

    with ThreadPoolExecutor(options.jobs, "cell") as pool:
        return 0 if all(list(pool.map(carry_out, wanted))) else 1


if __name__ == "__main__":
    sys.exit(main())
