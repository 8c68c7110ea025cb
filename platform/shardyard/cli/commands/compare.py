"""`shardyard compare`: runs side by side, with the fields of their recipes that differ and their metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Annotated, Any

import typer

from shardyard.cli.commands.runs import curve_in_text
from shardyard.cli.options import AsJson, RunsDir, listed_folder
from shardyard.cli.view import complete, output
from shardyard.errors import UsageError
from shardyard.launch.describe import number
from shardyard.tracking.files import encode
from shardyard.tracking.run.comparison import Comparison
from shardyard.tracking.run.comparison import compare as side_by_side
from shardyard.tracking.run.folder import RunFolder, runs_dir_option

Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...", autocompletion=complete.run_ids, help="Ids, unique beginnings, paths, or `latest`."
    ),
]


def compare(runs: Runs, runs_dir: RunsDir = None, as_json: AsJson = False) -> None:
    """Compare runs: the fields of their recipes that differ, and their newest metrics."""
    folder = listed_folder(runs_dir)
    chosen = list(dict.fromkeys(RunFolder.open(folder, name).path for name in runs))
    if len(chosen) < 2:
        listing = f"shardyard runs{runs_dir_option(folder)}"
        raise UsageError(f"a comparison needs at least two different runs; `{listing}` lists them.")
    found = side_by_side([RunFolder(path) for path in chosen])
    if as_json:
        output.print_json(json.loads(encode(_as_json(found))))
        return
    shown = 20 if output.width() >= 120 else 10
    curves = [("curve", *(curve_in_text(RunFolder(path), shown) for path in chosen))] if output.is_terminal() else []
    _print(found, [*_rows(found), *curves])


def _print(found: Comparison, rows: list[tuple[str, ...]]) -> None:
    """Print the comparison. Column headers are ids if they fit, else letters; in a pipe the ids are a row."""
    if not output.is_terminal():
        output.print_table(("", *found.runs), [("run", *found.runs), *rows])
        return
    first = max(len(row[0]) for row in rows)
    heads = found.runs
    if first + sum(2 + len(run) for run in found.runs) > output.width() and len(heads) <= len(ascii_uppercase):
        heads = tuple(ascii_uppercase[: len(heads)])
        output.print_table(("", ""), list(zip(heads, found.runs, strict=True)))
        output.line()
    output.print_table(("", *heads), rows)


def _rows(found: Comparison) -> Iterator[tuple[str, ...]]:
    yield ("state", *found.states)
    yield ("step", *map(str, found.steps))
    for field, values in found.recipe.items():
        yield (field, *map(_value, values))
    for name, measured in found.metrics.items():
        yield (name, *map(_measured, measured))


def _measured(value: float | None) -> str:
    return "-" if value is None else number(value, ",.0f" if abs(value) >= 1000 else ".4f")


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _as_json(found: Comparison) -> list[dict[str, object]]:
    return [
        {
            "run": run,
            "state": found.states[index],
            "step": found.steps[index],
            "recipe": {field: values[index] for field, values in found.recipe.items()},
            "metrics": {name: values[index] for name, values in found.metrics.items()},
        }
        for index, run in enumerate(found.runs)
    ]
