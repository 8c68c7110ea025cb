"""The workers of an attempt: a placement group with one bundle and actor per worker. Uses only Ray's public API.

The driver requests the actors before the bundles are placed, and they import torch while the driver still queries their
locations: the calls are pipelined in Ray's queues, which saves round trips.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shardyard.errors import HardwareError
from shardyard.launch.ray import spares as waiting
from shardyard.launch.ray.places import Member, rank_order, seats_of
from shardyard.launch.ray.rank_actor import RankWorker, Setup
from shardyard.launch.ray.ready import Ready
from shardyard.launch.ray.waits import STOP_POLL_SECONDS, Answers, gather
from shardyard.launch.ray.watchdog import Watchdog
from shardyard.planning.placement import Demand, Placement
from shardyard.tracking.run.waiting import Wait

# A label that Ray sets on every node.
NODE_ID_LABEL = "ray.io/node-id"
# Time limit for placing bundles on nodes that recently had room for them, and the addition per bundle.
PLACEMENT_SECONDS = 10.0
PLACEMENT_SECONDS_A_BUNDLE = 0.1
# Time limit of one wait for an autoscaler; a run that waits longer repeats its request.
AUTOSCALER_SECONDS = 30.0
# Time limit for answers from the processes of placed workers: a host starts them one after the other.
ANSWER_SECONDS = 300.0
# Time for ranks to leave their group before they are killed.
PARTING_SECONDS = 10.0


class NotPlacedError(Exception):
    """No rank trains: the workers did not get their resources, or a stop is requested.

    wait: the run's new wait; None if it is unchanged.
    """

    def __init__(self, wait: Wait | None = None) -> None:
        super().__init__(wait)
        self.wait = wait


class WorkersFailedError(Exception):
    """Some workers failed. errors: number of a worker → its exception; ranked: whether these numbers are ranks."""

    def __init__(self, errors: dict[int, BaseException], *, ranked: bool) -> None:
        super().__init__(f"{len(errors)} worker(s) failed")
        self.errors = errors
        self.ranked = ranked


class WorkerGroup:
    """The ranks of one job, or of several consecutive ones; ended with the block.

    stopped: whether a stop is requested; checked until the ranks train. spares: whether further processes wait to
    take the places of the ranks. watchdog: looks after these.
    times: when it had reached what, in seconds since 1970.
    """

    def __init__(
        self,
        demand: Demand,
        placement: Placement,
        setup: Setup,
        stopped: Callable[[], bool] = lambda: False,
        *,
        spares: bool = False,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._demand = demand
        self._placement = placement
        self._setup = setup
        self._stopped = stopped
        self._watchdog = watchdog
        self._workers: list[Any] = []
        self._bundles: Any = None
        self._members: list[Member] = []
        self._order: list[int] = []
        self._wants_spares = spares
        self._spares: waiting.Spares | None = None
        self.times: dict[str, float] = {}

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(gently=kind is None)

    def place(self) -> list[Member]:
        """Start the workers; returns them in the order of ranks.

        Raises:
            NotPlacedError: they did not get their resources, do not answer, or a stop is requested.
            WorkersFailedError: some ended.
        """
        self._bundles = reserve(self._demand, self._placement)
        actor = ray.remote(RankWorker)
        workers = [actor.options(**self._options(index)).remote() for index in range(self._demand.workers)]
        self._workers = workers
        located = [worker.locate.remote(self._setup, len(workers)) for worker in workers]
        for worker in workers:
            worker.load.remote()
        self._wait_for_place()
        answers: Answers[Member] = gather(located, limit=ANSWER_SECONDS, stopped=self._stopped)
        if answers.errors:
            raise WorkersFailedError(answers.errors, ranked=False)
        if missing := len(located) - len(answers.values):
            raise NotPlacedError(None if self._stopped() else Wait("no_answer", workers=missing))
        members = [answers.values[index] for index in range(len(workers))]
        self._order = rank_order(members)
        self._workers = [workers[index] for index in self._order]
        self._members = [members[index] for index in self._order]
        self._watch()
        self.times["placed"] = time.time()
        return self._members

    @property
    def has_spares(self) -> bool:
        """Whether processes wait to take the places of the ranks."""
        return self._spares is not None

    def end_ranks(self) -> None:
        """End the processes of the ranks; their places are kept."""
        for worker in self._workers:
            with contextlib.suppress(RayError):
                ray.kill(worker)
        self._workers = []

    def replace(self) -> list[Member]:
        """Put the spares in the places of the ranks, which have ended; returns them in the order of ranks.

        Raises:
            NotPlacedError: one is missing.
        """
        spares, self._spares = self._spares, None
        assert spares is not None
        taken = spares.take()
        if taken is None:
            spares.close()
            raise NotPlacedError
        self._workers, self._members = taken
        self._watch()
        self.times["placed"] = time.time()
        return self._members

    def join(self, members: Sequence[Member], timeout: float) -> list[Ready]:
        """Prepare the ranks and join them into a process group, within `timeout` seconds.

        Raises:
            HardwareError: a host lacks hardware that the recipe requires.
            NotPlacedError: a stop is requested.
            RanksHungError: they hang, and were ended.
            WorkersFailedError: some failed.
        """
        if bare := self._without_device(members):
            raise HardwareError(
                f"Ray gave no GPU to the workers on {', '.join(bare)}; set cluster.gpus_per_worker to what each needs, "
                "or to 0 for ranks that compute on the CPU."
            )
        one_host = len({member.address for member in members}) == 1
        seats = seats_of(members, gpu=self._setup.gpu)
        ready: list[Ready] = self._of_all(
            [worker.prepare.remote(seat, one_host) for worker, seat in zip(self._workers, seats, strict=True)],
            self._stopped,
        )
        self.times["imported"] = time.time()
        if problems := dict.fromkeys(answer.problem for answer in ready if answer.problem):
            raise HardwareError("\n".join(problems))
        first = members[0]
        self._of_all(
            [worker.join.remote(first.address, first.port, timeout) for worker in self._workers], self._stopped
        )
        self.times["joined"] = time.time()
        return ready

    def train(self, job: bytes, look: Callable[[], None]) -> Any:
        """Run a pickled job on all ranks; returns its outcome. `look` is called every second meanwhile.

        Raises:
            RanksHungError: they hang, and were ended.
            WorkersFailedError: some failed.
        """
        shared = ray.put(job)
        began = time.monotonic()

        def each_second() -> bool:
            look()
            if self._wants_spares and self._spares is None and time.monotonic() - began > waiting.AFTER_SECONDS:
                self._spares = waiting.Spares(self._bundles, self._order, self._members, self._setup)
            return False

        return self._of_all([worker.train.remote(shared) for worker in self._workers], each_second)[0]

    def close(self, *, gently: bool) -> None:
        """End the workers and free their resources; `gently`: they leave their process group first."""
        if self._watchdog is not None:
            self._watchdog.close()
        if gently and self._workers:
            gather([worker.leave.remote() for worker in self._workers], limit=PARTING_SECONDS)
        self.end_ranks()
        if self._spares is not None:
            self._spares.close()
            self._spares = None
        if self._bundles is not None:
            with contextlib.suppress(RayError):
                remove_placement_group(self._bundles)
            self._bundles = None

    def _watch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.begin(self._members)

    def _options(self, index: int) -> dict[str, Any]:
        bundle = self._demand.bundle
        where = PlacementGroupSchedulingStrategy(self._bundles, placement_group_bundle_index=index)
        # Without a separate runtime environment Ray can use an idle process.
        options: dict[str, Any] = {"num_cpus": bundle.cpus, "num_gpus": bundle.gpus, "scheduling_strategy": where}
        if bundle.memory:
            options["memory"] = bundle.memory
        return options

    def _wait_for_place(self) -> None:
        limit = placement_seconds(self._demand.workers) if self._placement.ranks else AUTOSCALER_SECONDS
        until = time.monotonic() + limit
        while not self._bundles.wait(STOP_POLL_SECONDS):
            if self._stopped():
                raise NotPlacedError
            if time.monotonic() > until:
                raise NotPlacedError(Wait("taken") if self._placement.ranks else None)

    def _without_device(self, members: Sequence[Member]) -> list[str]:
        return list(dict.fromkeys(member.host for member in members if self._setup.gpu and not member.gpus))

    def _of_all(self, calls: list[Any], stopped: Callable[[], bool] | None = None) -> list[Any]:
        answers: Answers[Any] = gather(
            calls, stopped=stopped, look=self._watchdog.poll if self._watchdog is not None else None
        )
        if answers.errors:
            raise WorkersFailedError(answers.errors, ranked=True)
        if len(answers.values) < len(calls):
            raise NotPlacedError
        return [answers.values[rank] for rank in range(len(calls))]


def placement_seconds(bundles: int) -> float:
    """Time limit for placing this many bundles on nodes that have room for them."""
    return PLACEMENT_SECONDS + PLACEMENT_SECONDS_A_BUNDLE * bundles


def reserve(demand: Demand, placement: Placement) -> Any:
    """Ray's placement group for a demand; it may not be placed yet.

    Each bundle names its node: Ray's own packing fills nodes completely and may split a group of ranks. A placement
    without ranks leaves the choice to Ray.
    """
    amount = demand.bundle
    wanted = {"CPU": amount.cpus, "GPU": amount.gpus, "memory": amount.memory}
    bundle = {name: value for name, value in wanted.items() if value}
    pinned = [{NODE_ID_LABEL: node} for node in placement.node_of_rank]
    return placement_group(
        [bundle] * demand.workers,
        strategy="PACK" if pinned else demand.strategy.upper(),
        bundle_label_selector=pinned or None,
    )
