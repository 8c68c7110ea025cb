"""Waiting until a run fits on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from shardyard.planning.placement import ANYWHERE, Demand, Node, Placement, judge
from shardyard.tracking.run.waiting import Wait

POLL_SECONDS = 1.0
# Resources of an attempt that just ended are released a moment later; such short waits are not reported.
QUIET_SECONDS = 3.0
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

    report: called with the wait, once and whenever it changes.
    stopped: whether a stop is requested.
    """

    def __init__(
        self,
        demand: Demand,
        cluster: Cluster,
        report: Callable[[Wait], None],
        stopped: Callable[[], bool],
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._demand = demand
        self._cluster = cluster
        self._report_to = report
        self._stopped = stopped
        self._sleep = sleep
        self._clock = clock
        self._reported: Wait | None = None
        self._reported_at = 0.0
        self._tried = False

    def wait(self) -> Placement | None:
        """Wait for the placement of the workers; one without ranks leaves it to Ray and its autoscaler. None if a stop
        is requested.

        Raises:
            HardwareError: the run could never fit on the cluster. Only before the first attempt: a node lost during
                training may come back.
        """
        began = self._clock()
        while True:
            verdict = judge(self._demand, self._cluster.nodes())
            if verdict.now is not None:
                self._reported, self._tried = None, True
                return verdict.now
            if self._stopped():
                return None
            if self._cluster.autoscales:
                self._report(Wait.for_resources(verdict.shortage, autoscaler=True))
                return ANYWHERE
            if not verdict.ever and not self._tried:
                self._cluster.refuse_what_never_fits(self._demand)
            if self._clock() - began >= QUIET_SECONDS:
                self._report(Wait.for_resources(verdict.shortage))
            self._sleep(POLL_SECONDS)

    def _report(self, wait: Wait) -> None:
        now = self._clock()
        if wait == self._reported or (self._reported is not None and now - self._reported_at < REPEAT_SECONDS):
            return
        self._reported, self._reported_at = wait, now
        self._report_to(wait)
