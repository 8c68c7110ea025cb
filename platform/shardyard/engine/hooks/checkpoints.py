"""Saving the state of the run between steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from shardyard.data.stream.streams import StreamStates
from shardyard.engine.checkpoint.checkpoint import Checkpointer, TrainerState
from shardyard.engine.hooks.base import EventLog, Hook
from shardyard.errors import CheckpointError, TrainingError
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import CheckpointFailed, CheckpointSaved, Notice


class CheckpointHook(Hook):
    """Saves checkpoints between steps.

    A failed checkpoint is logged and training continues, because the next one may succeed. Weights that are not finite
    are not saved and end the run.
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
        *,
        every: int = 1,
    ) -> None:
        """`exploded` creates the error of a diverged step; `may_write` raises if another process took over the run."""
        super().__init__(every)
        self._checkpointer, self._state, self._events, self._exploded = checkpointer, state, events, exploded
        self._may_write = may_write
        self.saved_step: int | None = None

    def on_step(self, record: StepRecord) -> None:
        """Save a checkpoint, and report success or failure."""
        with contextlib.suppress(CheckpointError):
            self.save(record.step)

    def save(self, step: int) -> None:
        """Save unless this step has already been saved.

        Raises:
            CheckpointError: the checkpoint could not be written; this is logged.
            TrainingError: weights are not finite.
            TakenOverError: another process has taken over the run.
        """
        if self.saved_step == step:
            return
        self._may_write()
        spoiled = self._checkpointer.spoiled_weights()
        if spoiled:
            raise self._exploded(step + 1, f"weights are not finite after step {step} ({', '.join(spoiled)})")
        state, streams = self._state(step)
        try:
            saved = self._checkpointer.save(state, streams)
        except CheckpointError as error:
            self._events.event(CheckpointFailed(step=step, error=str(error)))
            raise
        self.saved_step = step
        if saved.removed:
            text = f"the disk is full: {', '.join(saved.removed)} made room for the checkpoint of step {step}"
            self._events.event(Notice(text=text))
        self._events.event(
            CheckpointSaved(step=step, path=saved.path.name, seconds=saved.seconds, bytes=saved.size_bytes)
        )
