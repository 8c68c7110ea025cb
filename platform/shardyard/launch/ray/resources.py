"""Waiting until a run fits on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from shardyard.planning.placement import ANYWHERE, Demand, Node, Placement, judge, place
from shardyard.tracking.run.waiting import Wait

POLL_SECONDS = 1.0
# Resources of an attempt that just ended are released a moment later; such short waits are not reported.
QUIET_SECONDS = 3.0
# A run that may have fewer workers first waits this long for all of them: for those that are about to be free.
PATIENCE_SECONDS = 5.0
# Frequently changing numbers are not reported each time.
REPEAT_SECONDS = 15.0


class Cluster(Protocol):
    """The cluster interface needed for waiting."""

    @property
    def autoscales(self) -> bool:
        """Whether nodes may be added automatically."""

    def nodes(self) -> Sequence[Node]:
        """The living nodes."""

    def refuse_what_never_fits(self, demand: Demand) -> None:
        """Raise HardwareError if the request could never fit."""


class Resources:
    """Finds a placement for each attempt of a run.

    demands: what it requests, the most first; the others only serve if that finds no room.
    report: called with the wait, once and whenever it changes.
    stopped: whether a stop is requested.
    """

    def __init__(
        self,
        demands: Sequence[Demand],
        cluster: Cluster,
        report: Callable[[Wait], None],
        stopped: Callable[[], bool],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._demands = demands
        self._cluster = cluster
        self._report_to = report
        self._stopped = stopped
        self._sleep = sleep
        self._clock = clock
        self._reported: Wait | None = None
        self._reported_at = 0.0
        self._tried = False

    def wait(self) -> tuple[Demand, Placement] | None:
        """Wait for the placement of the workers of one of the demands; one without ranks leaves it to Ray and its
        autoscaler. None if a stop is requested.

        Raises:
            HardwareError: the run could never fit on the cluster. Only before the first attempt: a node lost during
                training may come back.
        """
        began = self._clock()
        while True:
            nodes = self._cluster.nodes()
            is_late = self._clock() - began >= PATIENCE_SECONDS
            for demand in self._demands if is_late else self._demands[:1]:
                if (found := place(demand, nodes)) is not None:
                    self._reported, self._tried = None, True
                    return demand, found
            if self._stopped():
                return None
            # Waiting is for the fewest workers.
            least = self._demands[-1]
            verdict = judge(least, nodes)
            if self._cluster.autoscales and (is_late or verdict.now is None):
                self._report(Wait.for_resources(verdict.shortage, autoscaler=True))
                return least, ANYWHERE
            if not verdict.ever and not self._tried:
                self._cluster.refuse_what_never_fits(least)
            if self._clock() - began >= QUIET_SECONDS:
                self._report(Wait.for_resources(verdict.shortage))
            self._sleep(POLL_SECONDS)

    def _report(self, wait: Wait) -> None:
        now = self._clock()
        if wait == self._reported or (self._reported is not None and now - self._reported_at < REPEAT_SECONDS):
            return
        self._reported, self._reported_at = wait, now
        self._report_to(wait)
