"""`shardyard data forget`: what the removal of documents would touch, and how to keep them out of later runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import AsJson, RunsDir
from shardyard.cli.view import output
from shardyard.errors import UsageError
from shardyard.tracking.run.folder import RunFolder, list_runs, runs_folder

if TYPE_CHECKING:
    from shardyard.engine.inference.forget import Removal, TouchedRun
    from shardyard.engine.inference.trace import TracedDocument

_SHOWN_ROWS = 20
_SHOWN_TEXT = 80


def forget_data(
    listed: Annotated[
        Path,
        typer.Argument(
            metavar="LIST",
            help="Documents, one a line: FILE:ROW, sha256:HEX, /pattern/, a JSON line, or a part of the text.",
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="RUN", help="Only this run; can be repeated. Default: all runs."),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option("--exclude", metavar="FILE", help="Add the documents to this list, for data.exclude of recipes."),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what the removal of documents would touch: runs, checkpoints, models, files. Deletes nothing."""
    from shardyard.data.ledger.queries import read_list
    from shardyard.engine.inference.forget import plan_removal

    queries, folder = read_list(listed), runs_folder(runs_dir)
    runs = [RunFolder.open(folder, name) for name in names] if names else list_runs(folder)
    if not runs:
        raise UsageError(f"{folder} holds no runs; give another --runs-dir.")
    found = plan_removal(runs, queries, None if exclude is None else exclude.expanduser().resolve())
    added = 0 if exclude is None else _add(exclude.expanduser(), found["documents"])
    if as_json:
        output.print_json({**found, "exclude": None if exclude is None else str(exclude.expanduser().resolve())})
        return
    _print(found, [run.id for run in runs])
    if exclude is not None:
        output.line(f"{exclude}: {added} documents added; runs with `data.exclude: {exclude}` do not read them.")


def _add(path: Path, documents: Sequence[TracedDocument]) -> int:
    """Add documents to a list, each once.

    Raises:
        UsageError: it cannot be written, or it is no such list.
    """
    from shardyard.data.ledger.exclusion import read_exclusion

    known = set(read_exclusion(str(path))) if path.exists() else set[str]()
    new = {one["sha256"]: one for one in documents if one["sha256"] not in known}
    lines = [json.dumps({name: one[name] for name in ("sha256", "file", "row")}) for one in new.values()]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise UsageError(f"--exclude {path} cannot be written: {error.strerror}.") from error
    return len(new)


def _print(found: Removal, runs: Sequence[str]) -> None:
    for query in found["unmatched"]:
        output.note(f"Note: no run has a document that is {query[:_SHOWN_TEXT]}")
    for unread in found["unread"]:
        output.note(f"Note: {unread['run']} cannot say what it read: {unread['problem']}")
    output.line(f"{len(found['documents'])} documents, looked for in {len(runs)} runs")
    for file in found["files"]:
        rows = ", ".join(map(str, file["rows"][:_SHOWN_ROWS])) + (", …" if len(file["rows"]) > _SHOWN_ROWS else "")
        output.line(f"remove from {file['file']}: row{'s' if len(file['rows']) > 1 else ''} {rows}")
    for copy in found["copies"]:
        output.line(f"remove from {copy}")
    for run in found["runs"]:
        output.line()
        _print_run(run)
    if not found["runs"]:
        output.line("no run saw them")


def _print_run(run: TouchedRun) -> None:
    if run["problem"]:
        output.note(f"Note: {run['run']}: {run['problem']}")
    what = []
    if run["inherited"]:
        what.append(f"began from weights of {run['inherited']}")
    if run["steps"]:
        first = f", first in step {run['steps'][0]}" if len(run["steps"]) > 1 else f": {run['steps'][0]}"
        what.append(f"{len(run['documents'])} documents in {len(run['steps'])} steps{first}")
    elif not run["inherited"]:
        what.append(f"{len(run['documents'])} documents among those that evaluations may measure on")
    output.line(f"{run['run']}: {'; '.join(what)}")
    for path in run["delete"]:
        output.line(f"  delete {path}")
    if run["clean_step"] is not None:
        place = f"step {run['clean_step']}" if run["clean_step"] else "the start"
        output.line(f"  train again from {place}: {run['command']}")
