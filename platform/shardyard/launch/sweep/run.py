"""The run of one trial: its recipe, plan and folder, and its execution in a Ray worker."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import ray

from shardyard.engine.job import Job
from shardyard.engine.loop import Outcome
from shardyard.errors import RunFolderError, TrainingError, UsageError
from shardyard.launch.ray.attempt import attempt
from shardyard.launch.ray.cluster import RayCluster
from shardyard.launch.ray.worker_group import NotPlacedError
from shardyard.launch.run.driver import GaveUpError, NotStartedError, count_attempt, drive, locally, until_done
from shardyard.launch.run.host import refuse_on_this_host
from shardyard.launch.run.initial import check_unchanged
from shardyard.launch.run.plans import PlannedRun, refuse_what_does_not_fit, with_initial_weights
from shardyard.launch.run.prepare import prepare
from shardyard.launch.run.recovery import Failure
from shardyard.launch.run.world import cluster_address, world_of
from shardyard.launch.sweep.folder import SweepFolder
from shardyard.planning.placement import demand_of
from shardyard.planning.plan import World, fixed
from shardyard.planning.plan_text import as_dict, resolved_text
from shardyard.recipe.loading.load import LoadedRecipe, dump_recipe
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sweep.load import load_base
from shardyard.recipe.sweep.schema import Sweep
from shardyard.recipe.sweep.trials import Parameters, as_overrides, trial_name
from shardyard.tracking.run.code import keep_code
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.info import RunFields
from shardyard.tracking.run.lease import Lease
from shardyard.tracking.run.plan_file import keep_plan

PLACE_AGAIN_SECONDS = 2.0
LEASE_PATIENCE_SECONDS = 60.0
# The log of the trial, to which its worker writes.
_LOG = 2


def trial_overrides(sweep: Sweep, sweep_id: str, number: int, parameters: Parameters) -> list[str]:
    """The overrides that turn the recipe of all trials into that of one trial."""
    fixed: dict[str, object] = {"name": trial_name(sweep.name, number), "tracking.wandb.group": sweep_id}
    if sweep.population is not None:
        # Members are compared at the same steps, and each comparison may need the checkpoint of that step.
        fixed |= {"evaluate.every": sweep.population.every, "checkpoint.every": sweep.population.every}
    return as_overrides({**parameters, **fixed})


def make_job(folder: SweepFolder, sweep: Sweep, number: int, parameters: Parameters) -> Job:
    """The job of a trial, in its existing run folder or a new one.

    Raises:
        RecipeError: the parameters make the recipe invalid.
        DataError, ModelError, UsageError: data, model or initial weights are missing, or the plan does not fit.
    """
    loaded = load_base(folder.base, trial_overrides(sweep, folder.id, number, parameters))
    planned = _planned(loaded, folder, number, parameters)
    recipe, plan = planned.loaded.recipe, planned.plan
    run = folder.run_of(number)
    if run is None:
        run = planned.create(folder.runs_dir, ["shardyard", "sweep", folder.id])
    else:
        check_unchanged(run)
        run.update(sweep={**run.info().sweep, "parameters": parameters})
        keep_plan(run, resolved_text(recipe, plan), as_dict(plan))
    folder.note(number, run=run.id, parameters=parameters, error=None)
    return Job(keep_code(recipe, run), plan, run)


def _planned(loaded: LoadedRecipe, folder: SweepFolder, number: int, parameters: Parameters) -> PlannedRun:
    """The plan of a trial. Its recipe holds the values that the plan fixed, as its resolved.yaml does."""
    loaded, initial_weights = with_initial_weights(loaded, folder.runs_dir)
    world = _world(loaded.recipe)
    if cluster_address(loaded.recipe.cluster) is None:
        refuse_on_this_host(loaded.recipe, gpu=world.gpu)
    plan = prepare(loaded.recipe, world)
    refuse_what_does_not_fit(plan)
    recipe = fixed(loaded.recipe, plan)
    run_fields: RunFields = {"sweep": {"id": folder.id, "trial": number, "parameters": parameters}}
    if initial_weights:
        run_fields["starting"] = initial_weights
    loaded = replace(loaded, recipe=recipe, text=dump_recipe(recipe))
    return PlannedRun(loaded, plan, plan.world.size == 1, run_fields)


def carry_out(job: Job) -> Outcome:
    """Train to the end within this Ray worker, and keep run.json up to date.

    A single rank trains in this process. Several ranks are separate workers, driven by this process.

    Raises:
        TrainingError: training failed permanently. ShardyardError: the same for a single rank.
    """
    with _lease_of(job.folder):
        try:
            return drive(job, _in_this_process if job.plan.world.size == 1 else _by_workers)
        except GaveUpError as error:
            # The trial shows only the cause; the details are in its run folder.
            raise TrainingError(error.failure.describe()) from error


def _lease_of(folder: RunFolder) -> Lease:
    """The lease of a trial's run. Its previous worker, which Tune is stopping, may still hold it for a moment.

    Raises:
        UsageError: another process keeps holding it.
    """
    deadline = time.monotonic() + LEASE_PATIENCE_SECONDS
    while True:
        try:
            return Lease.take(folder)
        except UsageError as error:
            if isinstance(error, RunFolderError) or time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def _world(recipe: Recipe) -> World:
    if recipe.cluster.workers == 1:
        return world_of(recipe.cluster, local=True)
    return world_of(recipe.cluster, cluster_gpus=int(ray.cluster_resources().get("GPU", 0)))


def _in_this_process(job: Job) -> Outcome:
    try:
        return locally(job, keep_group=True, tells=_LOG)
    finally:
        # Otherwise the next trial's engine would need memory in addition to this one's.
        gc.collect()


def _by_workers(job: Job) -> Outcome:
    cluster = RayCluster(cluster_address(job.recipe.cluster))
    demand = cluster.requested(demand_of(job.recipe, gpu=job.plan.world.gpu, workers=job.plan.world.size))

    def start() -> Outcome | Failure:
        count_attempt(job)
        try:
            return attempt(job, demand)
        except NotPlacedError:
            # Other trials use the resources now.
            count_attempt(job, by=-1)
            time.sleep(PLACE_AGAIN_SECONDS)
            raise NotStartedError from None

    return until_done(job, start)
