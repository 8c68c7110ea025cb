"""`shardyard checkpoint`: list, verify and remove the checkpoints of a run."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from shardyard.cli.options import AsJson, Quiet, RunName, RunsDir
from shardyard.cli.view import output
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.listing import Listed, listed, problems, to_remove
from shardyard.errors import CheckpointError, UsageError
from shardyard.tracking.run.folder import RunFolder, runs_folder, typed
from shardyard.units import format_bytes

checkpoint = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, verify and remove the checkpoints of a run.",
)
_COLUMNS = ("checkpoint", "state", "size", "written", "ranks", "stage", "layout", "problem")


@checkpoint.command("ls")
def list_checkpoints(run: RunName, runs_dir: RunsDir = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List checkpoints, damaged ones and those that were set aside included. Files are not read: see verify."""
    folder = RunFolder.open(runs_folder(runs_dir), run)
    rows = listed(folder.checkpoints)
    if as_json:
        output.print_json([asdict(row) | {"path": str(row.path)} for row in rows])
    elif quiet:
        for row in rows:
            output.line(row.path.name)
    elif not rows:
        output.note(f"{folder.checkpoints} has no checkpoint yet.")
    else:
        output.print_table(_COLUMNS, [_cells(row) for row in rows])


@checkpoint.command("verify")
def verify(
    run: RunName,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Only the checkpoint of this step.")] = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare every byte of checkpoints with their manifests. Exit code 1 if one is damaged."""
    folder = RunFolder.open(runs_folder(runs_dir), run)
    rows = [row for row in listed(folder.checkpoints) if row.is_committed and step in (None, row.step)]
    if not rows:
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UsageError(f"{folder.path} has {what}; `shardyard checkpoint ls {typed(folder.path)}` lists them.")
    found = {row.path.name: problems(row.path) for row in rows}
    if as_json:
        output.print_json(found)
    else:
        for name, wrong in found.items():
            output.line(f"{name}\t{'; '.join(wrong) or 'whole'}")
    bad = [name for name, wrong in found.items() if wrong]
    if bad:
        raise CheckpointError(
            f"{', '.join(bad)}: damaged; a resume passes over damaged checkpoints by itself, and `shardyard checkpoint "
            f"rm {typed(folder.path)} STEP` removes one"
        )


@checkpoint.command("rm")
def remove(
    run: RunName,
    which: Annotated[
        list[str], typer.Argument(metavar="STEP…", help="Steps, names of folders, `damaged` or `aside` for all such.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove even the last good one.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """Remove checkpoints; never the last good one without --force."""
    folder = RunFolder.open(runs_folder(runs_dir), run)
    doomed = to_remove(listed(folder.checkpoints), which, force=force)
    if not doomed:
        output.note("There is nothing to remove.")
        return
    names, size = ", ".join(row.path.name for row in doomed), sum(row.size_bytes for row in doomed)
    if not yes:
        if not output.is_terminal():
            raise UsageError(f"removing {names} is not asked for outside of a terminal: add --yes.")
        typer.confirm(f"Remove {names} ({format_bytes(size)})?", abort=True)
    left = [row.path.name for row in doomed if not files.drop(row.path)]
    if left:
        raise CheckpointError(f"{', '.join(left)} cannot be removed from {folder.checkpoints}; check its owner")
    output.line(f"removed {names} ({format_bytes(size)})")


def _cells(row: Listed) -> tuple[str, ...]:
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.written))
    numbers = ["" if value is None else str(value) for value in (row.ranks, row.zero_stage)]
    return (
        row.path.name,
        row.state,
        format_bytes(row.size_bytes),
        written,
        *numbers,
        row.layout or "",
        row.problem or "",
    )
