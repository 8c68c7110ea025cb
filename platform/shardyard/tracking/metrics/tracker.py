"""What the training loop tells: step records, events and samples go to the run folder, records also to W&B.

Each call takes microseconds in the calling thread and never raises: watching does not hurt.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from shardyard.errors import RunFolderError, TakenOverError
from shardyard.tracking.files import JsonlWriter
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Event, EventWriter, Notice, WandbStatus
from shardyard.tracking.run.folder import RunFolder

logger = logging.getLogger(__name__)


class MirrorStatus(Protocol):
    """`mode`: starting, online, offline or disabled. `place`: URL of the run, or its folder on this disk."""

    @property
    def mode(self) -> str: ...
    @property
    def place(self) -> str | None: ...


class Mirror(Protocol):
    """A copy of the metrics elsewhere, such as `WandbMirror`; its methods neither wait nor raise."""

    problems: list[str]

    def start(self) -> None: ...
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def finish(self, timeout_seconds: float, outcome: str = "finished") -> None: ...
    def status(self) -> MirrorStatus: ...


class Tracker:
    """Used by rank 0 of the training loop, one per attempt. Close it, or use it as a context manager."""

    def __init__(self, folder: RunFolder, mirror: Mirror | None = None) -> None:
        self.folder = folder
        self._mirror = mirror
        self._metrics = JsonlWriter(folder.metrics)
        self._events = EventWriter(folder.events)
        self._samples = JsonlWriter(folder.samples)
        self._step: int | None = None
        self._reported_status = ""
        self._reported_problems = 0
        if mirror is not None:
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
        """Append the metrics of a step, unless another process trains the run by now."""
        if not self._is_ours():
            return
        self._step = record.step
        self._metrics.append(record.as_line())
        if self._mirror is not None:
            self._mirror.log(record.step, record.metrics)
            self._report_mirror()

    def event(self, event: Event) -> None:
        """Append something that happened."""
        if self._is_ours():
            self._events.write(event)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Append a continuation that the model wrote."""
        if self._is_ours():
            self._samples.append({"step": step, "time": time.time(), "prompt": prompt, "text": text})

    def close(self, timeout_seconds: float = 30.0, *, outcome: str = "finished") -> None:
        """Note the last step in run.json, let the mirror finish for at most `timeout_seconds`, close the files.

        `outcome` is how the run ended, which the mirror tells too: as the training loop says it, or `failed`.
        """
        if self._step is not None:
            with contextlib.suppress(RunFolderError, TakenOverError):
                self.folder.update(step=self._step)
        if self._mirror is not None:
            self._mirror.finish(timeout_seconds, outcome)
            self._report_mirror()
        for writer in (self._metrics, self._events, self._samples):
            writer.close()

    def _is_ours(self) -> bool:
        try:
            self.folder.check_held()
        except TakenOverError:
            return False
        return True

    def _report_mirror(self) -> None:
        """Pass on, as events, where the mirror is to be found and what it could not do."""
        assert self._mirror is not None
        status = self._mirror.status()
        if str(status) != self._reported_status:
            self._reported_status = str(status)
            if status.mode != "starting":
                online = status.mode == "online"
                self.event(
                    WandbStatus(
                        mode=status.mode,
                        url=status.place if online else None,
                        folder=None if online else status.place,
                    )
                )
        for problem in self._mirror.problems[self._reported_problems :]:
            self._reported_problems += 1
            self.event(Notice(text=problem))
