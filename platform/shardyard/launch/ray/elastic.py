"""Runs whose number of workers changes: the sizes that they may have, and when they grow.

A run shrinks by itself: after a failure its ranks are placed anew, on fewer where no more fit. It grows by being asked
to: its ranks write a checkpoint and end, and more of them go on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shardyard.engine.job import Job
from shardyard.errors import RecipeError
from shardyard.planning.placement import Amount, Demand, Node, demand_of, place
from shardyard.planning.plan import make_plan
from shardyard.recipe.rules.sizes import sizes_of

# How often the cluster is asked for room while a run trains on fewer workers than it could.
LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Size:
    """A number of workers, what they request, and the job with so many ranks."""

    workers: int
    demand: Demand
    job: Job


def sizes_of_job(job: Job, requested: Callable[[Demand], Demand]) -> list[Size]:
    """The sizes that a job may have, the largest first; its own is always one of them.

    Args:
        requested: the request of a demand on this cluster.
    """
    found = []
    for workers in sizes_of(job.recipe):
        try:
            resized = job_on(job, workers)
        except RecipeError:
            continue
        if resized.plan.fits is False and workers != job.plan.world.size:
            continue
        demand = demand_of(job.recipe, gpu=job.plan.world.gpu, workers=workers)
        found.append(Size(workers, requested(demand), resized))
    return found


def job_on(job: Job, workers: int) -> Job:
    """The job with so many ranks, which train the same global batches.

    Raises:
        RecipeError: it cannot have so many.
    """
    if workers == job.plan.world.size:
        return job
    streams = job.recipe.data.model_copy(update={"streams": job.plan.streams})
    recipe = job.recipe.model_copy(update={"data": streams})
    world = replace(job.plan.world, size=workers)
    return replace(job, recipe=recipe, plan=make_plan(recipe, job.plan.architecture, world))


class Growth:
    """Asks a run that trains on fewer workers than it could to end, once there has been room for more for a while.

    Args:
        sizes: those that the run may have, the largest first.
        nodes: the living nodes of the cluster, with what this run leaves free.
        report: called with a sentence, once.
    """

    def __init__(
        self,
        job: Job,
        sizes: Sequence[Size],
        nodes: Callable[[], Sequence[Node]],
        report: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._nodes, self._report, self._clock = job, nodes, report, clock
        self._larger = [size for size in sizes if size.workers > job.plan.world.size]
        self._looked = clock()
        self._since: float | None = None
        self._asked = False

    def look(self) -> None:
        """Called every second while the run trains."""
        now = self._clock()
        if not self._larger or self._asked or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        size = self._fitting()
        if size is None:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since >= self._job.recipe.cluster.grow_after and self._job.folder.stop_requested() is None:
            self._asked = True
            here = self._job.plan.world.size
            self._report(f"there is room for {size.workers} workers: goes on on them, from {here}, after a checkpoint")
            self._job.folder.request_resize()

    def _fitting(self) -> Size | None:
        """The largest size that the free resources and those of this run hold together."""
        own: dict[str, int] = {}
        for one in self._job.folder.info().placement or ():
            own[one["node"]] = len(one["ranks"])
        for size in self._larger:
            bundle = size.demand.bundle
            nodes = [replace(node, free=_more(node.free, bundle, own.get(node.id, 0))) for node in self._nodes()]
            if place(size.demand, nodes) is not None:
                return size
        return None


def _more(free: Amount, bundle: Amount, count: int) -> Amount:
    return Amount(free.cpus + count * bundle.cpus, free.gpus + count * bundle.gpus, free.memory + count * bundle.memory)
