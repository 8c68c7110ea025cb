"""Saving the state of the run between steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from shardyard.data.stream.streams import StreamStates
from shardyard.engine.checkpoint.checkpoint import Checkpointer, SpoiledError, TrainerState, spoiled_text
from shardyard.engine.hooks.base import EventLog, Hook
from shardyard.errors import CheckpointError, TrainingError
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import CheckpointFailed, CheckpointSaved, Notice


class CheckpointHook(Hook):
    """Saves checkpoints between steps.

    A failed checkpoint is logged and training continues, because the next one may succeed. Weights that are not finite
    are not saved and end the run; beside training, a few steps after they were copied.
    """

    name = "checkpoint"
    reads_metrics = False

    def __init__(
        self,
        checkpointer: Checkpointer,
        state: Callable[[int], tuple[TrainerState, StreamStates]],
        events: EventLog,
        exploded: Callable[[int, str], TrainingError],
        may_write: Callable[[], None] = lambda: None,
        verify: Callable[[int], None] = lambda step: None,
        *,
        every: int = 1,
        seconds: float | None = None,
    ) -> None:
        """`seconds`: time between two checkpoints, beside those after `every` steps. `exploded` creates the error of a
        diverged step; `may_write` raises if another process took over the run, `verify` if what ranks hold in common
        differs."""
        super().__init__(every)
        self._checkpointer, self._state, self._events, self._exploded = checkpointer, state, events, exploded
        self._may_write, self._verify = may_write, verify
        self.saved_step: int | None = None
        self._begun_step: int | None = None
        self._spoiled: tuple[int, str] | None = None
        self._seconds = seconds
        self._clock = time.monotonic
        self._asked = self._clock()
        self.timed = False

    def falls_due(self) -> bool:
        """Whether the time between two checkpoints is over, or the run must end because weights that were copied are
        not finite; rank 0 asks, and tells the others by the step's sum."""
        if self._spoiled is not None:
            return True
        now = self._clock()
        if self._seconds is None or now - self._asked < self._seconds:
            return False
        self._asked = now
        return True

    def on_time(self, step: int) -> None:
        """Save after `step`, the newest one, if the sum of a step said so; all ranks call this."""
        if not self.timed:
            return
        self.timed = False
        self._save_unless_it_fails(step)

    def on_step(self, record: StepRecord) -> None:
        """Begin a checkpoint, once the one before is written; report success or failure of what is written."""
        self._save_unless_it_fails(record.step)

    def poll(self) -> None:
        """Report a checkpoint that was written beside training."""
        if self._checkpointer.written:
            with contextlib.suppress(CheckpointError):
                self.settle()

    def save(self, step: int) -> None:
        """Save unless this step has already been saved, and wait until it is written.

        Raises:
            CheckpointError: the checkpoint could not be written; this is logged.
            TrainingError: weights are not finite, or those of ranks differ.
            TakenOverError: another process has taken over the run.
        """
        self._begin(step)
        self.settle()

    def settle(self) -> None:
        """Wait until the checkpoint that was begun is written, and report it; all ranks call this.

        Raises:
            CheckpointError: the checkpoint could not be written; this is logged.
        """
        if not self._checkpointer.is_writing:
            return
        try:
            saved = self._checkpointer.finish()
        except CheckpointError as error:
            self._events.event(CheckpointFailed(step=self._begun_step, error=str(error)))
            if isinstance(error, SpoiledError) and self._begun_step is not None:
                self._spoiled = (self._begun_step, str(error))
            raise
        self.saved_step = saved.step
        if saved.removed:
            text = f"the disk is full: {', '.join(saved.removed)} made room for the checkpoint of step {saved.step}"
            self._events.event(Notice(text=text, warns=True))
        self._events.event(
            CheckpointSaved(
                step=saved.step,
                path=saved.path.name,
                seconds=saved.seconds,
                paused_seconds=saved.paused_seconds,
                bytes=saved.size_bytes,
            )
        )

    def _save_unless_it_fails(self, step: int) -> None:
        with contextlib.suppress(CheckpointError):
            if self._checkpointer.background:
                self._begin(step)
            else:
                self.save(step)

    def _begin(self, step: int) -> None:
        with contextlib.suppress(CheckpointError):
            self.settle()
        if self._spoiled is not None:
            raise self._exploded(self._spoiled[0] + 1, self._spoiled[1])
        if self.saved_step == step:
            return
        self._may_write()
        self._verify(step)
        spoiled = self._checkpointer.spoiled_weights()
        if spoiled:
            raise self._exploded(step + 1, spoiled_text(step, spoiled))
        self._begun_step = step
        self._checkpointer.begin(*self._state(step))
