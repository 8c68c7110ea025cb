"""`shardyard checkpoint`: list, verify, remove, convert and copy the checkpoints of a run."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from shardyard.cli.commands.stored.convert import convert
from shardyard.cli.options import AsJson, Quiet, RunName, RunsDir
from shardyard.cli.view import output
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.listing import Listed, listed, problems, to_remove
from shardyard.engine.checkpoint.remote.contents import problems_of, rows_of, stored_in
from shardyard.engine.checkpoint.remote.contents import remove as remove_stored
from shardyard.engine.checkpoint.remote.mirror import Mirror, address_of
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.errors import CheckpointError, UsageError
from shardyard.launch.describe import describe
from shardyard.launch.run.prepare import recipe_in
from shardyard.recipe.sources.stores import is_address, problem
from shardyard.tracking.run.folder import RunFolder, runs_folder, typed
from shardyard.tracking.run.lease import Lease
from shardyard.units import format_bytes

checkpoint = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, verify, remove, convert and copy the checkpoints of a run; RUN may be its address in an object store.",
)
checkpoint.command("convert")(convert)
_COLUMNS = ("checkpoint", "state", "size", "written", "ranks", "stage", "layout", "problem")


@checkpoint.command("ls")
def list_checkpoints(run: RunName, runs_dir: RunsDir = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List checkpoints, damaged ones and those that were set aside included. Files are not read: see verify."""
    if is_address(run):
        where, rows = Store(run).url, rows_of(stored_in(Store(run)))
    else:
        folder = RunFolder.open(runs_folder(runs_dir), run)
        where, rows = str(folder.path), listed(folder.checkpoints)
    if as_json:
        output.print_json([asdict(row) | {"path": f"{where}/checkpoints/{row.path.name}"} for row in rows])
    elif quiet:
        for row in rows:
            output.line(row.path.name)
    elif not rows:
        output.note(f"{where}/checkpoints has no checkpoint yet.")
    else:
        output.print_table(_COLUMNS, [_cells(row) for row in rows])


@checkpoint.command("verify")
def verify(
    run: RunName,
    step: Annotated[
        int | None, typer.Option("--step", metavar="STEP", min=0, help="Only the checkpoint of this step.")
    ] = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare every byte of checkpoints with their manifests. Exit code 1 if one is damaged."""
    if is_address(run):
        store = Store(run)
        where = named = store.url
        stored = [one for one in stored_in(store) if one.is_committed and step in (None, one.step)]
        found = {one.name: problems_of(store, one) for one in stored}
    else:
        folder = RunFolder.open(runs_folder(runs_dir), run)
        where, named = str(folder.path), typed(folder.path)
        rows = [row for row in listed(folder.checkpoints) if row.is_committed and step in (None, row.step)]
        found = {row.path.name: problems(row.path) for row in rows}
    if not found:
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise UsageError(f"{where} has {what}; `shardyard checkpoint ls {named}` lists them.")
    if as_json:
        output.print_json(found)
    else:
        for name, wrong in found.items():
            output.line(f"{name}\t{'; '.join(wrong) or 'whole'}")
    bad = [name for name, wrong in found.items() if wrong]
    if bad:
        raise CheckpointError(
            f"{', '.join(bad)}: damaged; a resume passes over damaged checkpoints by itself, and `shardyard checkpoint "
            f"rm {named} STEP` removes one"
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
    store = Store(run) if is_address(run) else None
    stored = {one.name: one for one in stored_in(store)} if store is not None else {}
    folder = RunFolder.open(runs_folder(runs_dir), run) if store is None else None
    doomed = to_remove(rows_of(stored.values()) if folder is None else listed(folder.checkpoints), which, force=force)
    if not doomed:
        output.note("There is nothing to remove.")
        return
    names, size = ", ".join(row.path.name for row in doomed), sum(row.size_bytes for row in doomed)
    if not yes:
        if not output.is_terminal():
            raise UsageError(f"removing {names} is not asked for outside of a terminal: add --yes.")
        typer.confirm(f"Remove {names} ({format_bytes(size)})?", abort=True)
    if store is not None:
        for row in doomed:
            remove_stored(store, stored[row.path.name])
    left = [row.path.name for row in doomed if folder is not None and not files.drop(row.path)]
    if left and folder is not None:
        raise CheckpointError(f"{', '.join(left)} cannot be removed from {folder.checkpoints}; check its owner")
    output.line(f"removed {names} ({format_bytes(size)})")


@checkpoint.command("mirror")
def mirror(
    run: RunName,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="Folder in a store. Default: checkpoint.mirror of the run."),
    ] = None,
    runs_dir: RunsDir = None,
) -> None:
    """Copy what the object store of checkpoint.mirror lacks: the newest checkpoints, the run folder and final/."""
    folder = RunFolder.open(runs_folder(runs_dir), run)
    settings = recipe_in(folder).checkpoint
    target = to or settings.mirror
    if target is None:
        raise UsageError(f"{folder.id} has no checkpoint.mirror; give an address with --to s3://BUCKET/FOLDER.")
    if (wrong := problem(target)) is not None:
        raise UsageError(f"{wrong}.")
    with Lease.take(folder):
        store = Store(address_of(target, folder.id))
        found = Mirror(folder, store, settings.keep, lambda event: output.line(describe(event)))
        found.claim()
        found.finish()
    output.line(f"{store.url} holds what {folder.path} holds")


def _cells(row: Listed) -> tuple[str, ...]:
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.written)) if row.written else ""
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
