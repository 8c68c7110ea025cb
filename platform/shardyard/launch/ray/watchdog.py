"""The watchdog of an attempt: it looks at all ranks once a second, names slow ones, and ends ranks that hang.

It runs in the driver and uses no collective. Ranks of the driver's host are read through /proc; on each other node an
actor without resources reads those of its host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shardyard.launch.ray.places import Member
from shardyard.recipe.schema import Watchdog as Settings
from shardyard.tracking.run.events import Event, Notice, Straggler, write_event
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.watch.hangs import record_hang
from shardyard.tracking.watch.history import History
from shardyard.tracking.watch.judge import Limits, Verdict, Watched, judge
from shardyard.tracking.watch.look import Evidence, Look, Target, look, question_and_end, readable
from shardyard.tracking.watch.slow import Stragglers

POLL_SECONDS = 1.0
# Speeds are compared over this many times hang_seconds.
STRAGGLER_WINDOWS = 2.0
# Time for the answers of all nodes: their ranks are asked for their stacks. One that cannot be reached gives none.
ANSWER_SECONDS = 15.0


class RanksHungError(Exception):
    """Ranks hang; all have been ended. ranks: those that the others waited for."""

    def __init__(self, message: str, ranks: tuple[int, ...]) -> None:
        super().__init__(message, ranks)
        self.message, self.ranks = message, ranks


class NodeWatch:
    """Looks at the ranks of one node, as an actor there."""

    def look(self, targets: Sequence[Target]) -> list[Look]:
        """All of them now."""
        return look(targets)

    def question_and_end(self, targets: Sequence[Target], end: bool) -> list[Evidence]:
        """Their stacks; then they are ended."""
        return question_and_end(targets, end=end)


@dataclass
class _Node:
    targets: list[Target]
    # None: read from this process.
    actor: Any = None
    asked: Any = None


class Watchdog:
    """Watches the ranks of one attempt, in the order of ranks. `poll` is called often and does something every second.

    longest: seconds that any collective may take (cluster.network.timeout).
    """

    def __init__(self, settings: Settings, folder: RunFolder, longest: float) -> None:
        self._settings, self._folder = settings, folder
        self._limits = Limits(settings.hang_seconds, settings.idle_seconds, settings.data_seconds, longest)
        self._nodes: list[_Node] = []
        self._stragglers = Stragglers(settings.straggler_factor, STRAGGLER_WINDOWS * settings.hang_seconds)
        self._next = 0.0
        self._told_data: set[int] = set()
        self._reported: tuple[int, ...] | None = None

    def begin(self, members: Sequence[Member]) -> None:
        """Watch these workers, whose positions are their ranks."""
        self.close()
        self._history = History(time.monotonic())
        self._stragglers = Stragglers(self._settings.straggler_factor, STRAGGLER_WINDOWS * self._settings.hang_seconds)
        self._told_data, self._reported = set(), None
        if self._settings.hangs == "off":
            return
        by_node: dict[str, list[Target]] = {}
        for rank, member in enumerate(members):
            if member.beat is not None:
                by_node.setdefault(member.node, []).append(Target(rank, member.pid, member.host, member.beat))
        here = ray.get_runtime_context().get_node_id()
        for node, targets in by_node.items():
            local = node == here and all(readable(target) for target in targets)
            self._nodes.append(_Node(targets, None if local else self._actor(node)))

    def poll(self) -> None:
        """Look at all ranks, if it is time.

        Raises:
            RanksHungError: they hang, and have been ended.
        """
        now = time.monotonic()
        if not self._nodes or now < self._next:
            return
        self._next = now + min(POLL_SECONDS, self._limits.hang / 4)
        looks = self._look()
        now = time.monotonic()
        self._history.add(looks, now)
        watched = self._history.watched(now)
        self._tell_slow(watched, now)
        verdict = judge(watched, self._limits)
        if verdict is None:
            self._reported = None
        elif self._reported != verdict.ranks:
            self._reported = verdict.ranks
            self._act(verdict, watched)

    def close(self) -> None:
        """End the actors of other nodes."""
        for node in self._nodes:
            if node.actor is not None:
                with contextlib.suppress(RayError):
                    ray.kill(node.actor)
        self._nodes = []

    def _actor(self, node: str) -> Any:
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        return ray.remote(NodeWatch).options(num_cpus=0, scheduling_strategy=where).remote()

    def _look(self) -> list[Look]:
        """Looks that are there; a node that is slow to answer is read the next time."""
        found: list[Look] = []
        for node in self._nodes:
            if node.actor is None:
                found += look(node.targets)
                continue
            if node.asked is not None:
                ended, _ = ray.wait([node.asked], timeout=0)
                if not ended:
                    continue
                with contextlib.suppress(RayError):
                    found += ray.get(node.asked)
            node.asked = node.actor.look.remote(node.targets)
        return found

    def _act(self, verdict: Verdict, watched: Sequence[Watched]) -> None:
        ends = self._settings.hangs == "restart"
        evidence = self._question(end=ends)
        then = (
            "all ranks were ended; cluster.max_failures decides about the next attempt"
            if ends
            else "nothing, because cluster.watchdog.hangs is report"
        )
        event, message = record_hang(self._folder.path, self._folder.info().attempts, verdict, watched, evidence, then)
        self._tell(event)
        if ends:
            raise RanksHungError(message, verdict.ranks)

    def _question(self, *, end: bool) -> Mapping[int, Evidence]:
        asked = [node.actor.question_and_end.remote(node.targets, end) for node in self._nodes if node.actor]
        found = [one for node in self._nodes if not node.actor for one in question_and_end(node.targets, end=end)]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        for call in answered:
            with contextlib.suppress(RayError):
                found += ray.get(call)
        return {one.rank: one for one in found}

    def _tell_slow(self, watched: Sequence[Watched], now: float) -> None:
        """Name slow ranks, and ranks that wait for data."""
        for one in self._stragglers.see([one.look for one in watched], now):
            self._tell(
                Straggler(
                    rank=one.rank,
                    host=one.host,
                    part=one.part,
                    factor=one.factor,
                    part_seconds=one.seconds,
                    others_seconds=one.others_seconds,
                )
            )
        late = {
            one.look.rank: one.look.age_seconds
            for one in watched
            if one.look.phase == "data"
            and one.look.age_seconds > max(self._limits.hang, 10 * one.look.slow_step_seconds)
        }
        if late and not self._told_data:
            ranks = ", ".join(map(str, late))
            text = f"rank {ranks} has waited {max(late.values()):.0f} s for data: its sources are slow or do not answer"
            self._tell(Notice(text=text))
        self._told_data = set(late)

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(OSError):
            write_event(self._folder.events, event)
