"""`shardyard submit`: check and plan a recipe here, and submit it to a scheduler as a job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.commands.jobs import reach, write
from shardyard.cli.options import Address, Overrides, Quiet, RecipeName, RunsDir, Try
from shardyard.cli.view import complete, output
from shardyard.recipe.loading.load import load_recipe

if TYPE_CHECKING:
    from shardyard.launch.jobs.submission import SubmitRequest
    from shardyard.launch.schedulers.base import Scheduler

DEFAULT_SCHEDULER = "ray"
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="SCHEDULER",
        autocompletion=complete.scheduler_names,
        help="Scheduler: ray, slurm or kuberay.",
    ),
]


def submit(
    name: RecipeName,
    overrides: Overrides = None,
    address: Address = None,
    job_name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the job. Default: the recipe's name.")
    ] = None,
    try_steps: Try = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow its log and exit with its exit code.")] = False,
    on: On = DEFAULT_SCHEDULER,
    dry_run: Annotated[
        Path | None,
        typer.Option("--dry-run", metavar="FILE", help="Write what would be submitted, without submitting."),
    ] = None,
    runs_dir: RunsDir = None,
    working_dir: Annotated[
        Path | None,
        typer.Option("--working-dir", help="Folder to upload with the job; --dry-run lists its files."),
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Submit a recipe as a job."""
    from shardyard.launch.jobs.submit import check_names, make_request

    check_names(job_name, working_dir)
    from shardyard.launch.schedulers.registry import create

    scheduler = create(on, address)
    loaded = load_recipe(name, overrides or [])
    request = make_request(
        name,
        loaded,
        scheduler,
        job_name=job_name,
        runs_dir=runs_dir,
        working_dir=working_dir,
        try_steps=try_steps,
        dry_run=dry_run,
    )
    return _submit(request, scheduler, reach(None if on == DEFAULT_SCHEDULER else on, address), wait=wait, quiet=quiet)


def _submit(request: SubmitRequest, scheduler: Scheduler, options: str, *, wait: bool, quiet: bool) -> int:
    handle = scheduler.submit(request, output.note)
    if handle is None:
        return 0
    if quiet or request.dry_run is not None:
        output.line(handle.id)
    else:
        output.line(f"job          {handle.id}")
        if handle.run_folder is not None:
            output.line(f"run folder   {handle.run_folder}")
        output.line(f"follow       shardyard logs -f {handle.id}{options}")
    if not wait or request.dry_run is not None:
        return 0
    from shardyard.launch.schedulers.lookup import Job, JobOrRun

    job = Job(scheduler, scheduler.status(handle))
    if not quiet:
        write(scheduler.logs(handle, follow=True))
    return JobOrRun(job, job.folder).wait().exit_code
