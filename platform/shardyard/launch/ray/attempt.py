"""One attempt at a job on Ray workers."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shardyard.engine.job import Job
from shardyard.errors import HardwareError
from shardyard.launch.jobs.secrets import carried
from shardyard.launch.ray.death import count_oom_kills, describe_death
from shardyard.launch.ray.failures import failure_of
from shardyard.launch.ray.network import to_forward
from shardyard.launch.ray.places import Member, parted_groups, places_of
from shardyard.launch.ray.rank_actor import Setup
from shardyard.launch.ray.ready import Ready
from shardyard.launch.ray.worker_group import WorkerGroup, WorkersFailedError
from shardyard.launch.run.recovery import Failure
from shardyard.planning.placement import ANYWHERE, Demand, Placement, demand_of
from shardyard.tracking.run.events import Notice, Placed, write_event
from shardyard.tracking.run.folder import now_text

if TYPE_CHECKING:
    from shardyard.engine.loop import Outcome

# Before they join, ranks import torch, which takes longer on some hosts than on others.
RENDEZVOUS_SECONDS = 300.0


def attempt(
    job: Job,
    demand: Demand | None = None,
    placement: Placement = ANYWHERE,
    on_placed: Callable[[], None] = lambda: None,
) -> Outcome | Failure:
    """Run all ranks of a job once; returns the outcome or the failure. By default Ray places the workers of the plan.

    After a failure `recovery.decide` decides how to continue; it distinguishes a NaN loss from a lost node.

    Args:
        on_placed: called once all workers have their resources.

    Raises:
        NotPlacedError: no rank trained, because resources were missing or a stop was requested.
    """
    demand = demand or demand_of(job.recipe, gpu=job.plan.world.gpu, workers=job.plan.world.size)
    killed = count_oom_kills()
    setup = Setup(
        job.recipe.cluster.network,
        gpu=job.plan.world.gpu,
        forwarded=to_forward(os.environ),
        private=carried(os.environ, job.recipe),
        logs=job.folder.logs,
    )
    try:
        with WorkerGroup(demand, placement, setup, lambda: job.folder.stop_requested() is not None) as group:
            members = group.place()
            job.folder.update(placement=places_of(members), placed=now_text(), waiting=None)
            on_placed()
            ready = group.join(members, max(RENDEZVOUS_SECONDS, job.recipe.cluster.network.timeout))
            _log_placement(job, demand, members, ready)
            outcome: Outcome = group.train(pickle.dumps(job))
    except HardwareError as error:
        return Failure({str(error): ()}, permanent=True)
    except WorkersFailedError as error:
        return failure_of(error.errors, (lambda rank, text: _death(job, rank, text, killed)) if error.ranked else None)
    job.folder.update(outcome=outcome)
    return outcome


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
