"""Spare processes: one for each rank, in its place, with everything imported, so that a restart need not wait for it.

They are started once training has gone on for a while, import at a low priority, take no cores or GPUs from Ray, and
know nothing of the run. After a failure all old processes end and the spares become the ranks: no state of a failed
process is kept, on a GPU neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shardyard.launch.ray.places import Member
from shardyard.launch.ray.rank_actor import RankWorker, Setup
from shardyard.launch.ray.waits import gather

# Short runs have none.
AFTER_SECONDS = 20.0
# Time for a spare to answer once it is needed; ranks placed anew may take longer.
ANSWER_SECONDS = 30.0


class Spares:
    """The spare processes of a group. `members`: its ranks; `bundles`: the index of the bundle of each."""

    def __init__(self, group: Any, bundles: Sequence[int], members: Sequence[Member], setup: Setup) -> None:
        self._members = members
        actor = ray.remote(RankWorker)
        self._workers = [
            actor.options(
                num_cpus=0,
                num_gpus=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote()
            for index in bundles
        ]
        self._located = [worker.locate.remote(setup, len(self._workers)) for worker in self._workers]
        for worker, member in zip(self._workers, members, strict=True):
            worker.load_slowly.remote(member.threads)

    def take(self) -> tuple[list[Any], list[Member]] | None:
        """The spares and their places, in the order of ranks, once the processes that they replace are gone; None if
        one is missing, for example because its node is lost."""
        found = gather(self._located, limit=ANSWER_SECONDS)
        if found.errors or len(found.values) < len(self._workers):
            return None
        new = [found.values[rank] for rank in range(len(self._workers))]
        if [one.node for one in new] != [one.node for one in self._members]:
            return None
        ended = gather(
            [worker.outlive.remote(old.pid) for worker, old in zip(self._workers, self._members, strict=True)],
            limit=ANSWER_SECONDS,
        )
        if ended.errors or not all(ended.values.get(rank) for rank in range(len(new))):
            return None
        # A spare was given no GPU by Ray; that of its rank is free now.
        return self._workers, [replace(one, gpus=old.gpus) for one, old in zip(new, self._members, strict=True)]

    def close(self) -> None:
        """End them."""
        for worker in self._workers:
            with contextlib.suppress(RayError):
                ray.kill(worker)
