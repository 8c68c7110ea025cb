"""Trackers on a separate thread: training queues records and neither waits nor fails."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shardyard.redaction import scrub
from shardyard.tracking.run.events import Event, Notice
from shardyard.tracking.trackers.base import ExternalTracker

logger = logging.getLogger(__name__)

QUEUE_RECORDS = 10_000
FINISH_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Status:
    """`mode` is starting, online, offline or disabled; `place` is the run's URL, or its folder on this disk."""

    mode: str
    place: str | None = None


class Mirror:
    """Copies records to a tracker in the background. No method raises, and only `finish` waits.

    label: the tracker's name in messages. problems: failures as sentences, each once.
    """

    def __init__(
        self,
        tracker: ExternalTracker,
        label: str,
        *,
        queue_records: int = QUEUE_RECORDS,
    ) -> None:
        self.problems: list[str] = []
        self.dropped = 0
        self.label = label
        self._tracker = tracker
        self._queue: collections.deque[tuple[int, Mapping[str, float]]] = collections.deque()
        self._queue_records = queue_records
        self._changed = threading.Condition()
        self._closing = False
        self._outcome = "finished"
        self._status = Status("starting")
        self._thread = threading.Thread(target=self._work, name=f"mirror-{label}", daemon=True)

    def start(self) -> None:
        """Start in the background; returns immediately."""
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one record. If the tracker is slower than training, the oldest records are dropped and counted."""
        with self._changed:
            if self._closing or self._status.mode == "disabled":
                return
            if len(self._queue) >= self._queue_records:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((step, metrics))
            self._changed.notify()

    def finish(self, timeout_seconds: float = FINISH_TIMEOUT_SECONDS, outcome: str = "finished") -> None:
        """Write queued records and close the run with its outcome; gives up, with a problem, after the timeout."""
        with self._changed:
            self._outcome = outcome
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self.report_problem(f"did not finish within {timeout_seconds:.0f} s; {self.remains()}.")
        if self.dropped:
            self.report_problem(
                f"{self.dropped} records were dropped because it was too slow; the run folder has them all."
            )

    def status(self) -> Status:
        """The status of the mirror; `starting` until the tracker has started."""
        return self._status

    def status_event(self, status: Status) -> Event | None:
        """The event of the run for a status; None if there is nothing to report."""
        if status.place is None or status.mode != "online":
            return None
        return Notice(text=f"{self.label}: records go to {status.place}")

    def remains(self) -> str:
        """A text about records that a tracker did not accept in time."""
        return "the run folder has all records"

    def report_problem(self, problem: str) -> None:
        """Record a failure, once."""
        problem = scrub(f"{self.label}: {problem}")
        if problem not in self.problems:
            self.problems.append(problem)
            logger.warning("%s", problem)

    def begin(self) -> Status:
        """Start the tracker, on the thread; `disabled` ends it immediately."""
        place = self._tracker.start()
        return Status("online", None if place is None else scrub(str(place)))

    def _work(self) -> None:
        try:
            self._status = self.begin()
            if self._status.mode == "disabled":
                return
            for step, metrics in self._records():
                self._tracker.log(step, dict(metrics))
            self._tracker.finish(self._outcome)
        except BaseException as error:  # noqa: BLE001 - libraries raise many kinds, SystemExit too; training goes on
            self.report_problem(f"{reason(error)}; continuing without.")
            self._status = Status("disabled")
        finally:
            with self._changed:
                self._queue.clear()

    def _records(self) -> Iterator[tuple[int, Mapping[str, float]]]:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                record = self._queue.popleft()
            yield record


def reason(error: Any) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
