"""Planning a job for an existing cluster: its world, and the refusal of jobs that could never fit."""

from __future__ import annotations

from shardyard.errors import UsageError
from shardyard.hardware import computes_on_cpu
from shardyard.launch.schedulers.base import Capacity
from shardyard.planning.placement import demand_of, judge, within
from shardyard.planning.plan import World
from shardyard.recipe.schema import Recipe
from shardyard.units import parse_bytes


def world_on(recipe: Recipe, capacity: Capacity | None) -> World:
    """The world of a run on the cluster; memory is known only from the recipe. None: the cluster was not queried."""
    settings, nodes = recipe.cluster, (capacity.nodes if capacity is not None else None) or ()
    gpus = settings.gpus_per_worker
    wanted = gpus > 0 if gpus is not None else any(node.total.gpus for node in nodes)
    gpu = wanted and not computes_on_cpu()
    memory = None if settings.memory_per_worker is None else parse_bytes(settings.memory_per_worker)
    return World(size=settings.workers, gpu=gpu, device_bytes=memory)


def refuse_what_never_fits(recipe: Recipe, *, gpu: bool, capacity: Capacity, where: str) -> None:
    """Check that the workers could fit on the idle cluster, or once it has grown.

    Raises:
        UsageError: they never fit.
    """
    if capacity.nodes is None or capacity.grows:
        return
    demand = demand_of(recipe, gpu=gpu, workers=recipe.cluster.min_workers)
    verdict = judge(within(demand, capacity.nodes), capacity.nodes)
    if not verdict.ever:
        raise UsageError(
            f"{recipe.name} {verdict.sentence} at {where}. Lower cluster.workers or what each worker takes, which "
            "`shardyard plan RECIPE` shows, or add nodes."
        )
