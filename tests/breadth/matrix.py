"""The matrix: every model type of transformers under every objective whose head it has. Resumable; `make breadth`.

Each cell is a process forked from one that has imported the engine, with a limit of time and of memory. Its result is a
line of a file, and a cell that has a line is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from shardyard.objectives import registry
from shardyard.objectives.spec import ObjectiveSpec
from shardyard.recipe.families import families_with
from support.forks import fork_context

CELL_SECONDS = 180.0
POLL_SECONDS = 0.05


@dataclass(frozen=True, order=True)
class Cell:
    """One model type under one objective."""

    objective: str
    family: str


def objectives() -> list[str]:
    """All but those that train the models of an earlier one on other rows of packed text."""
    return [spec.name for spec in registry.specs() if spec.row_shape or _first(spec) == spec.name]


def in_short(objective: str) -> bool:
    """Whether its models are trained in the cells of another objective too, at both stages and with a resume."""
    spec = registry.objective_spec(objective)
    return _first(spec) != spec.name or "embedding" in spec.sections


def _first(spec: ObjectiveSpec) -> str:
    """The first objective that trains the same models."""
    same = (one for one in registry.specs() if (one.head, one.families) == (spec.head, spec.families))
    return next(same).name


def cells(of: Sequence[str], families: Sequence[str] = ()) -> list[Cell]:
    """The cells of these objectives, in order."""
    named = {name: families_with(registry.objective_spec(name)) for name in of}
    return [Cell(name, one) for name in of for one in sorted(named[name]) if not families or one in families]


def read(path: Path) -> dict[Cell, dict[str, object]]:
    """The newest result of each cell."""
    lines = path.read_text().splitlines() if path.is_file() else []
    results = [result for result in map(json.loads, lines) if "family" in result]
    return {Cell(result["objective"], result["family"]): result for result in results}


@dataclass
class _Running:
    cell: Cell
    process: ForkServerProcess
    scratch: tempfile.TemporaryDirectory[str]
    started: float

    @property
    def output(self) -> Path:
        return Path(self.scratch.name) / "result.json"


def run(todo: Sequence[Cell], output: Path, *, jobs: int, logs: Path | None = None) -> Iterator[dict[str, object]]:
    """Run cells, `jobs` at a time; yields each result after it was appended to `output`."""
    context = fork_context("breadth.cell")
    waiting, running = list(todo), list[_Running]()
    done = read(output)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(context, waiting[0], _alike(waiting[0], done)))
                waiting.pop(0)
            time.sleep(POLL_SECONDS)
            for one in [one for one in running if _ended(one)]:
                running.remove(one)
                result = _result(one, logs)
                with output.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                done[one.cell] = result
                yield result
    finally:
        for one in running:
            one.process.kill()


def _alike(cell: Cell, done: Mapping[Cell, dict[str, object]]) -> dict[str, object] | None:
    """The result of the same model under an objective that shares its head: a configuration is searched for once."""
    same = (Cell(other, cell.family) for other in objectives() if _head(other, cell.family) == _head(*astuple(cell)))
    found = (done[one] for one in same if one in done and one != cell)
    return next((one for one in found if one.get("config") or one["status"] == "invalid"), None)


def _head(objective: str, family: str) -> str:
    return registry.objective_spec(objective).auto_class_of(family)


def _start(context: ForkServerContext, cell: Cell, alike: dict[str, object] | None) -> _Running:
    from breadth.cell import run_cell

    scratch = tempfile.TemporaryDirectory(prefix="breadth-")
    folder = Path(scratch.name)
    process = context.Process(
        target=run_cell, args=(cell.objective, cell.family, folder, folder / "result.json", alike)
    )
    process.start()
    return _Running(cell, process, scratch, time.monotonic())


def _ended(one: _Running) -> bool:
    if time.monotonic() - one.started > CELL_SECONDS:
        one.process.kill()
        one.process.join()
    return not one.process.is_alive()


def _result(one: _Running, logs: Path | None) -> dict[str, object]:
    seconds = round(time.monotonic() - one.started, 1)
    if one.output.is_file():
        result = json.loads(one.output.read_text())
    else:
        why = f"took over {CELL_SECONDS:g} s" if seconds >= CELL_SECONDS else f"died ({one.process.exitcode})"
        result = {**asdict(one.cell), "status": "failed", "step": "process", "error": why}
    log = Path(one.scratch.name) / "log"
    if logs is not None and result["status"] == "failed" and log.is_file():
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{one.cell.objective}-{one.cell.family}.log").write_bytes(log.read_bytes())
    one.scratch.cleanup()
    return {**result, "total_seconds": seconds}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the file of results, one line of JSON for each cell")
    parser.add_argument("--objective", action="append", help="run only this one; may be repeated")
    parser.add_argument("--family", action="append", help="run only this model type; may be repeated")
    parser.add_argument("--again", action="store_true", help="run cells that did not pass once more")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--logs", type=Path, help="keep the output of cells that fail in this folder")
    given = parser.parse_args()
    done = read(given.output)
    wanted = cells(given.objective or objectives(), given.family or ())
    todo = [cell for cell in wanted if cell not in done or (given.again and done[cell]["status"] != "passed")]
    print(f"{len(wanted)} cells, {len(todo)} to run", flush=True)  # noqa: T201
    for number, result in enumerate(run(todo, given.output, jobs=given.jobs, logs=given.logs), 1):
        text = " ".join(str(result[key]) for key in ("objective", "family", "status", "step"))
        print(f"{number}/{len(todo)} {result['total_seconds']} s {text} {result['error']}"[:300], flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
