"""`shardyard wandb`: upload runs to Weights & Biases afterwards, and import its offline runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.options import AsJson, Quiet, RunsDir, listed_folder
from shardyard.cli.view import complete, output
from shardyard.errors import EXIT_FAILED, RunFolderError, ShardyardError, UsageError
from shardyard.tracking.run.folder import RunFolder, list_runs, runs_dir_option, runs_folder
from shardyard.tracking.wandb.importing import read_runs, write_run
from shardyard.tracking.wandb.sync import Plan, Progress, check_account, offline_runs, plan_upload, upload

wandb = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Upload runs to Weights & Biases, and import its offline runs.",
)

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...", autocompletion=complete.run_ids, help="Ids, unique beginnings, paths, or `latest`."
    ),
]
Paths = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help=".wandb files, run folders, or folders with W&B runs.")
]


@wandb.command("sync")
def sync_runs(
    runs: Runs = None,
    everything: Annotated[bool, typer.Option("--all", help="All offline runs that are not uploaded yet.")] = False,
    project: Annotated[
        str | None, typer.Option("--project", metavar="NAME", help="W&B project. Default: the recipe's.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option("--entity", metavar="NAME", help="W&B team or user. Default: the recipe's.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded, without any request.")
    ] = False,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Upload runs, each as one W&B run over all its restarts. Only steps that W&B lacks are sent."""
    if everything == bool(runs):
        listing = f"shardyard runs{runs_dir_option(runs_folder(runs_dir))}"
        raise UsageError(f"name the runs to upload, or give --all; `{listing}` lists them.")
    folder = listed_folder(runs_dir)
    chosen = offline_runs(list_runs(folder)) if everything else [RunFolder.open(folder, name) for name in runs or []]
    plans = _plans(chosen, project, entity, lenient=everything)
    if not plans:
        output.note(f"There is nothing to upload in {folder}: no run was offline, or all are uploaded.")
        return 0
    if not dry_run and not all(plan.is_done for plan in plans):
        check_account()
    return _report([_planned(plan) if dry_run else _upload(plan) for plan in plans], as_json=as_json, quiet=quiet)


def _plans(runs: list[RunFolder], project: str | None, entity: str | None, *, lenient: bool) -> list[Plan]:
    plans = []
    for run in runs:
        try:
            plans.append(plan_upload(run, project, entity))
        except RunFolderError as error:
            if not lenient:
                raise
            output.note(f"Skipped: {error}")
    return [plan for plan in plans if not (lenient and plan.is_done)]


def _planned(plan: Plan) -> dict[str, object]:
    place = f"{plan.entity or '(your default entity)'}/{plan.project}"
    if plan.is_done and plan.synced is not None:
        return {"run": plan.run.id, "done": True, "text": f"W&B has all {plan.steps} steps: {plan.synced.url}"}
    attempts = f", {plan.attempts} offline attempts" if plan.attempts > 1 else ""
    return {"run": plan.run.id, "done": False, "text": f"{plan.steps} steps{attempts} → {place}"}


def _upload(plan: Plan) -> dict[str, object]:
    if plan.is_done:
        return _planned(plan)
    try:
        with _progress(plan.run.id) as progress:
            found = upload(plan, progress)
    except ShardyardError as error:
        return {"run": plan.run.id, "done": False, "error": str(error), "text": str(error)}
    return {"run": plan.run.id, "done": True, "text": f"{found.sent} steps sent: {found.url}", **asdict(found)}


def _report(results: list[dict[str, object]], *, as_json: bool, quiet: bool) -> int:
    failed = [result for result in results if "error" in result]
    if as_json:
        output.print_json(results)
    for result in results:
        if "error" in result:
            output.print_error(str(result["error"]))
        elif not as_json:
            output.line(str(result["run"]) if quiet else f"{result['run']}: {result['text']}")
    return EXIT_FAILED if failed else 0


@contextmanager
def _progress(run_id: str) -> Iterator[Progress]:
    """A progress bar in a terminal; nothing in a pipe."""
    if not output.is_terminal():
        yield lambda done, total: None
        return
    from rich.progress import Progress as Bar

    with Bar(transient=True) as bar:
        task = bar.add_task(run_id, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@wandb.command("import")
def import_runs(
    paths: Paths,
    again: Annotated[bool, typer.Option("--again", help="Replace runs that were imported earlier.")] = False,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Import offline W&B runs of any tool into the runs folder, for `runs` and the dashboard."""
    folder = runs_folder(runs_dir)
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} is not there.")
    results: list[dict[str, object]] = []
    for found in read_runs(paths):
        try:
            written = write_run(found, folder, again=again)
        except ShardyardError as error:
            results.append({"run": found.run_id, "error": str(error)})
            continue
        notes = f" ({'; '.join(found.problems)})" if found.problems else ""
        text = (
            f"{found.num_steps} steps, {found.state}{notes}"
            if written.is_new
            else "exists already; --again replaces it"
        )
        results.append({"run": written.run.id, "new": written.is_new, "text": text, "problems": found.problems})
    return _report(results, as_json=as_json, quiet=quiet)
