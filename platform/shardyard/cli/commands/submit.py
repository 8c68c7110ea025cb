"""`shardyard submit`: check and plan a recipe here, and hand it to a scheduler as a job."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardyard.cli.commands.jobs import reach, write
from shardyard.cli.options import Address, Overrides, Quiet, RecipeName, RunsDir, Try
from shardyard.cli.view import complete, output
from shardyard.errors import UsageError
from shardyard.launch.jobs.named_files import refuse_unseen_files
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.recipe.shorten import as_trial
from shardyard.redaction import holds_secret

if TYPE_CHECKING:
    from shardyard.launch.jobs.submission import SubmitRequest
    from shardyard.launch.schedulers.base import Capacity, Scheduler
    from shardyard.planning.plan import RunPlan

DEFAULT_SCHEDULER = "ray"
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="SCHEDULER",
        autocompletion=complete.scheduler_names,
        help="What carries out the job: ray, slurm or kuberay.",
    ),
]
_JOB_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")


def submit(
    name: RecipeName,
    overrides: Overrides = None,
    address: Address = None,
    job_name: Annotated[str | None, typer.Option("--name", help="Name of the job; the recipe's by default.")] = None,
    try_steps: Try = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow its log, and end with its exit code.")] = False,
    on: On = DEFAULT_SCHEDULER,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="FILE", help="Write what would be submitted; submit nothing.")
    ] = None,
    runs_dir: RunsDir = None,
    working_dir: Annotated[
        Path | None,
        typer.Option("--working-dir", help="Folder that goes along; --dry-run lists its files."),
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Submit a recipe as a job."""
    if job_name is not None and not _JOB_NAME.match(job_name):
        raise UsageError(f"--name {job_name!r} is not a valid name: use up to 80 letters, digits, '.', '_' and '-'.")
    if job_name is not None and holds_secret(job_name):
        raise UsageError("--name holds what looks like a secret; everyone who lists the jobs sees it.")
    if working_dir is not None and not working_dir.is_dir():
        raise UsageError(f"--working-dir {working_dir} is not a folder.")
    from shardyard.launch.schedulers.registry import create

    scheduler = create(on, address)
    loaded = load_recipe(name, overrides or [])
    refuse_unseen_files(loaded.recipe, scheduler.files, working_dir)
    asked = (name, tuple(overrides or ()), job_name or loaded.recipe.name, dry_run, runs_dir, working_dir, try_steps)
    capacity = scheduler.capacity() if scheduler.standing and dry_run is None else None
    request = _request(loaded, lambda tried: _plan(tried, scheduler, capacity), asked, address)
    return _submit(request, scheduler, reach(None if on == DEFAULT_SCHEDULER else on, address), wait=wait, quiet=quiet)


def _plan(loaded: LoadedRecipe, scheduler: Scheduler, capacity: Capacity | None) -> RunPlan:
    """The plan for a scheduler, whose cluster, where it has one, must be able to hold the run."""
    from shardyard.launch.run.initial import for_planning
    from shardyard.launch.run.plans import plan_of, refuse_what_does_not_fit
    from shardyard.launch.run.prepare import prepare
    from shardyard.launch.schedulers.fit import refuse_what_never_fits, world_on
    from shardyard.tracking.run.folder import runs_folder

    located = for_planning(loaded.recipe, runs_folder())
    if not scheduler.standing:
        return plan_of(replace(loaded, recipe=located), elsewhere=True)
    world = world_on(loaded.recipe, capacity)
    if capacity is not None:
        refuse_what_never_fits(loaded.recipe, gpu=world.gpu, capacity=capacity, where=scheduler.where)
    made = prepare(located, world, remember=True)
    refuse_what_does_not_fit(made)
    return made


def _request(
    loaded: LoadedRecipe, plan: Callable[[LoadedRecipe], RunPlan], asked: tuple[Any, ...], address: str | None
) -> SubmitRequest:
    from shardyard.launch.jobs.submission import SubmitRequest
    from shardyard.planning.plan_text import resolved_text
    from shardyard.tracking.run.folder import runs_folder

    name, overrides, job_name, dry_run, runs_dir, working_dir, try_steps = asked
    made, trial = plan(loaded), None
    if try_steps is not None:
        trial = {"steps": try_steps, "of": made.steps}
        loaded = replace(loaded, recipe=as_trial(loaded.recipe, try_steps, of=made.steps))
        made = plan(loaded)
    return SubmitRequest(
        name=name,
        overrides=overrides,
        loaded=loaded,
        plan=made,
        runs_dir=runs_folder(runs_dir),
        job_name=job_name,
        dry_run=dry_run,
        address=address,
        resolved=resolved_text(loaded.recipe, made),
        working_dir=working_dir,
        trial=trial,
    )


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
