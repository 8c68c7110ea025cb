"""One attempt at a job on Ray workers, and what it leaves to the next one: places with spare processes in them."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shardyard.engine.job import Job, Restart
from shardyard.errors import HardwareError
from shardyard.launch.jobs.secrets import carried
from shardyard.launch.ray.death import count_oom_kills, describe_death
from shardyard.launch.ray.failures import failure_of
from shardyard.launch.ray.network import to_forward
from shardyard.launch.ray.places import Member, parted_groups, places_of
from shardyard.launch.ray.rank_actor import Setup
from shardyard.launch.ray.ready import Ready
from shardyard.launch.ray.watchdog import RanksHungError, Watchdog
from shardyard.launch.ray.worker_group import NotPlacedError, WorkerGroup, WorkersFailedError
from shardyard.launch.run.recovery import Failure
from shardyard.planning.placement import ANYWHERE, Demand, Placement, demand_of
from shardyard.tracking.run.events import Notice, Placed, write_event
from shardyard.tracking.run.folder import now_text

if TYPE_CHECKING:
    from shardyard.engine.loop import Outcome

# Before they join, ranks import torch, which takes longer on some hosts than on others.
RENDEZVOUS_SECONDS = 300.0


class Kept:
    """What a failed attempt leaves to the next one: its places, and when it failed. Closed with the block.

    job: as it was trained, with what was settled for its places.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self._group: WorkerGroup | None = None
        self._demand: Demand | None = None
        self._times: dict[str, float] = {}

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ready(self) -> bool:
        """Whether places are kept."""
        return self._group is not None

    def keep(self, group: WorkerGroup, job: Job, demand: Demand) -> None:
        """Keep the places of a group whose ranks have failed, if spares wait in them; end it otherwise."""
        self.job, self._demand = job, demand
        if not group.has_spares:
            group.close(gently=False)
            return
        group.end_ranks()
        self._group = group

    def note(self, **times: float) -> None:
        """Note when the last attempt had reached what, in seconds since 1970."""
        self._times |= times

    def take(self) -> tuple[WorkerGroup, Job, Demand] | None:
        """The places that are kept, once; None if the workers must be placed anew."""
        group, self._group = self._group, None
        if group is None or self.job is None or self._demand is None:
            return None
        return group, self.job, self._demand

    def restart(self, times: Mapping[str, float], *, spares: bool) -> Restart | None:
        """What the next attempt tells of its delay; None for the first one."""
        before, self._times = self._times, {}
        return Restart(times={**before, **times}, spares=spares) if "failed" in before else None

    def close(self) -> None:
        """Give the places back."""
        if self._group is not None:
            self._group.close(gently=False)
            self._group = None


def _nothing() -> None:
    pass


def attempt_again(
    kept: Kept, look: Callable[[Job], Callable[[], None]] = lambda _: _nothing
) -> Outcome | Failure | None:
    """Run a job that has failed once more, in the places of its ranks; None if these must be placed anew.

    Args:
        look: what is called every second while the job trains.
    """
    taken = kept.take()
    if taken is None:
        return None
    group, job, demand = taken
    try:
        return _attempt(job, demand, group, group.replace, _nothing, kept, look(job))
    except NotPlacedError:
        return None


def attempt(
    job: Job,
    demand: Demand | None = None,
    placement: Placement = ANYWHERE,
    on_placed: Callable[[], None] = _nothing,
    kept: Kept | None = None,
    look: Callable[[], None] = _nothing,
) -> Outcome | Failure:
    """Run all ranks of a job once; returns the outcome or the failure. By default Ray places the workers of the plan.

    After a failure `recovery.decide` decides how to continue; it distinguishes a NaN loss from a lost node.

    Args:
        on_placed: called once all workers have their resources.
        kept: takes the places of the ranks after a failure.
        look: called every second while the job trains.

    Raises:
        NotPlacedError: no rank trained, because resources were missing or a stop was requested.
    """
    demand = demand or demand_of(job.recipe, gpu=job.plan.world.gpu, workers=job.plan.world.size)
    setup = Setup(
        job.recipe.cluster.network,
        gpu=job.plan.world.gpu,
        forwarded=to_forward(os.environ),
        private=carried(os.environ, job.recipe),
        logs=job.folder.logs,
    )
    spares = kept is not None and job.recipe.cluster.spares and job.recipe.cluster.max_failures > 0

    def stopped() -> bool:
        return job.folder.stop_requested() is not None

    cluster = job.recipe.cluster
    watchdog = Watchdog(cluster.watchdog, job.folder, cluster.network.timeout)
    group = WorkerGroup(demand, placement, setup, stopped, spares=spares, watchdog=watchdog)
    return _attempt(job, demand, group, group.place, on_placed, kept, look)


def _attempt(
    job: Job,
    demand: Demand,
    group: WorkerGroup,
    place: Callable[[], list[Member]],
    on_placed: Callable[[], None],
    kept: Kept | None,
    look: Callable[[], None],
) -> Outcome | Failure:
    killed, used_spares = count_oom_kills(), group.has_spares
    try:
        members = place()
        job.folder.update(placement=places_of(members), placed=now_text(), waiting=None)
        on_placed()
        ready = group.join(members, max(RENDEZVOUS_SECONDS, job.recipe.cluster.network.timeout))
        _log_placement(job, demand, members, ready)
        restart = None if kept is None else kept.restart(group.times, spares=used_spares)
        outcome: Outcome = group.train(pickle.dumps(replace(job, restart=restart)), look)
    except HardwareError as error:
        group.close(gently=False)
        return Failure({str(error): ()}, permanent=True)
    except RanksHungError as error:
        _leave(job, demand, group, kept)
        return Failure({error.message: error.ranks}, permanent=False)
    except WorkersFailedError as error:
        _leave(job, demand, group, kept)
        return failure_of(error.errors, (lambda rank, text: _death(job, rank, text, killed)) if error.ranked else None)
    except BaseException:
        group.close(gently=False)
        raise
    group.close(gently=True)
    job.folder.update(outcome=outcome)
    return outcome


def _last_step(job: Job) -> float:
    """When the last step was recorded, in seconds since 1970; now if that is not known."""
    with contextlib.suppress(OSError):
        return job.folder.metrics.stat().st_mtime
    return time.time()


def _leave(job: Job, demand: Demand, group: WorkerGroup, kept: Kept | None) -> None:
    """End the ranks of a failed attempt; their places may be kept for the next one."""
    if kept is None:
        group.close(gently=False)
        return
    kept.note(failed=time.time(), last_step=_last_step(job))
    kept.keep(group, job, demand)
    kept.note(ended=time.time())


def _log_placement(job: Job, demand: Demand, members: Sequence[Member], ready: Sequence[Ready]) -> None:
    places = places_of(members)
    by_host = {member.address: list(answer.settings) for member, answer in zip(members, ready, strict=True)}
    job.folder.update(network=by_host)
    if len(places) > 1:
        write_event(job.folder.events, Placed(placement=places, network=by_host))
    if parted := parted_groups(places, demand.group):
        text = f"{parted} group(s) of {demand.group} ranks that share layers lie on several nodes, which is slow"
        write_event(job.folder.events, Notice(text=text))


def _death(job: Job, rank: int, ray_message: str, killed_before: int | None) -> str:
    killed = count_oom_kills()
    more = killed - killed_before if killed is not None and killed_before is not None else None
    places = job.folder.info().placement
    return describe_death(job.folder.logs / f"rank-{rank}.log", rank, places, ray_message, oom_kills=more)
