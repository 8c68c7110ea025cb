"""Submitting a recipe as a job to any scheduler: checks, plan and request."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from shardyard.errors import UsageError
from shardyard.launch.jobs.named_files import refuse_unseen_files
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.run.plans import plan_of, refuse_what_does_not_fit, without_weights
from shardyard.launch.run.prepare import prepare
from shardyard.launch.schedulers.base import Capacity, Scheduler
from shardyard.launch.schedulers.fit import refuse_what_never_fits, world_on
from shardyard.planning.plan import RunPlan
from shardyard.planning.plan_text import resolved_text
from shardyard.recipe.loading.load import LoadedRecipe
from shardyard.recipe.shorten import as_trial
from shardyard.redaction import holds_secret
from shardyard.tracking.run.folder import runs_folder

_JOB_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")


def check_names(job_name: str | None, working_dir: Path | None) -> None:
    """Check the name of a job and its folder.

    Raises:
        UsageError: the name is invalid, or the folder does not exist.
    """
    if job_name is not None and not _JOB_NAME.match(job_name):
        raise UsageError(f"--name {job_name!r} is not a valid name: use up to 80 letters, digits, '.', '_' and '-'.")
    if job_name is not None and holds_secret(job_name):
        raise UsageError("--name holds what looks like a secret; everyone who lists the jobs sees it.")
    if working_dir is not None and not working_dir.is_dir():
        raise UsageError(f"--working-dir {working_dir} is not a folder.")


def make_request(
    given: str,
    loaded: LoadedRecipe,
    scheduler: Scheduler,
    *,
    job_name: str | None = None,
    runs_dir: Path | None = None,
    working_dir: Path | None = None,
    try_steps: int | None = None,
    dry_run: Path | None = None,
) -> SubmitRequest:
    """Check and plan a recipe for a scheduler; returns the request for `Scheduler.submit`.

    Args:
        given: the recipe's name or path, as given by the user.
        runs_dir: parent of the run folder, as the host of the job sees it.
        working_dir: folder that is uploaded with the job.
        try_steps: shorten the run to this many steps, and scale everything that depends on its length.
        dry_run: a file for what would be submitted; the scheduler's capacity is not queried.

    Raises:
        UsageError: the run would never fit, or the job would not find files that the recipe names.
    """
    refuse_unseen_files(loaded.recipe, scheduler.files, working_dir)
    capacity = scheduler.capacity() if scheduler.standing and dry_run is None else None
    plan, trial = plan_for(loaded, scheduler, capacity), None
    if try_steps is not None:
        trial = {"steps": try_steps, "of": plan.steps}
        loaded = replace(loaded, recipe=as_trial(loaded.recipe, try_steps, of=plan.steps))
        plan = plan_for(loaded, scheduler, capacity)
    return SubmitRequest(
        name=given,
        overrides=loaded.overrides,
        loaded=loaded,
        plan=plan,
        runs_dir=runs_folder(runs_dir),
        job_name=job_name or loaded.recipe.name,
        dry_run=dry_run,
        address=scheduler.address,
        resolved=resolved_text(loaded.recipe, plan),
        working_dir=working_dir,
        trial=trial,
    )


def plan_for(loaded: LoadedRecipe, scheduler: Scheduler, capacity: Capacity | None) -> RunPlan:
    """The plan for a scheduler; if it has a standing cluster, the run must fit on it."""
    located = without_weights(loaded, runs_folder())
    if not scheduler.standing:
        return plan_of(located, elsewhere=True)
    world = world_on(loaded.recipe, capacity)
    if capacity is not None:
        refuse_what_never_fits(loaded.recipe, gpu=world.gpu, capacity=capacity, where=scheduler.where)
    plan = prepare(located.recipe, world, remember=True)
    refuse_what_does_not_fit(plan)
    return plan
