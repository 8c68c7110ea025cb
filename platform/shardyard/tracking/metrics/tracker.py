"""What the training loop tells: records, events and samples go to the run folder, records also to trackers like W&B.

Each call takes microseconds in the calling thread and never raises.
"""

from __future__ import annotations

import contextlib
import logging
import time

from shardyard.errors import RunFolderError, TakenOverError
from shardyard.tracking.files import JsonlWriter
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Event, EventWriter, Notice
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.trackers.background import Mirror, Status

logger = logging.getLogger(__name__)


class Tracker:
    """Used by rank 0 of the training loop, one per attempt. Close it, or use it as a context manager."""

    def __init__(self, folder: RunFolder, *mirrors: Mirror) -> None:
        self.folder = folder
        self._mirrors = mirrors
        self._metrics = JsonlWriter(folder.metrics)
        self._events = EventWriter(folder.events)
        self._samples = JsonlWriter(folder.samples)
        self._step: int | None = None
        self._reported: dict[Mirror, tuple[Status | None, int]] = dict.fromkeys(mirrors, (None, 0))
        for mirror in mirrors:
            mirror.start()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(outcome="finished" if kind is None else "failed")

    @property
    def lost(self) -> int:
        """Lines that could not be written since the start, for instance because the disk is full."""
        return self._metrics.lost + self._events.lost + self._samples.lost

    def record(self, record: StepRecord) -> None:
        """Append the metrics of a step, unless another process has taken over the run."""
        if not self._is_ours():
            return
        self._step = record.step
        self._metrics.append(record.as_line())
        for mirror in self._mirrors:
            mirror.log(record.step, record.metrics)
            self._report_mirror(mirror)

    def event(self, event: Event) -> None:
        """Append something that happened."""
        if self._is_ours():
            self._events.write(event)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Append a continuation that the model wrote."""
        if self._is_ours():
            self._samples.append({"step": step, "time": time.time(), "prompt": prompt, "text": text})

    def close(self, timeout_seconds: float = 30.0, *, outcome: str = "finished") -> None:
        """Note the last step in run.json, let mirrors finish for at most `timeout_seconds` together, close the files.

        `outcome` is how the run ended, which mirrors tell too: as the training loop says it, or `failed`.
        """
        if self._step is not None:
            with contextlib.suppress(RunFolderError, TakenOverError):
                self.folder.update(step=self._step)
        until = time.monotonic() + timeout_seconds
        for mirror in self._mirrors:
            mirror.finish(max(0.0, until - time.monotonic()), outcome)
            self._report_mirror(mirror)
        for writer in (self._metrics, self._events, self._samples):
            writer.close()

    def _is_ours(self) -> bool:
        try:
            self.folder.check_held()
        except TakenOverError:
            return False
        return True

    def _report_mirror(self, mirror: Mirror) -> None:
        """Pass on, as events, where a mirror is to be found and what it could not do."""
        before, num_problems = self._reported[mirror]
        status = mirror.status()
        event = mirror.status_event(status) if status != before and status.mode != "starting" else None
        if event is not None:
            self.event(event)
        for problem in mirror.problems[num_problems:]:
            self.event(Notice(text=problem))
        self._reported[mirror] = (status, len(mirror.problems))
