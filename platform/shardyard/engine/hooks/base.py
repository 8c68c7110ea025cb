"""The interface of a hook: work between steps, with its own interval and a state in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from pydantic import JsonValue

from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Event

# The state of a hook as checkpoints store it: JSON.
HookState = Mapping[str, JsonValue]


class EventLog(Protocol):
    """The event log to which a hook reports; only rank 0's reaches the run folder."""

    def event(self, event: Event) -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...


class NullEventLog:
    """The event log of every rank but the first."""

    def event(self, event: Event) -> None:
        """Drop the event."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Drop the sample."""


class Hook:
    """Work between two steps. The session runs its hooks in order, on every rank at the same steps.

    So a hook may use collectives, as long as every rank reaches them: never while handling an error.

    name: unique within a run; checkpoints store the hook's state under it.
    every: steps between two calls; the hook is always called after the last step of a run.
    reads_metrics: whether it reads the objective's training metrics. They are copied from the device only at steps
        where something needs them; otherwise a record may only hold values of every step (loss, norm, speed).
    may_lag: whether it may be called while the next step already runs on the GPU. It then must not use the model, and
        `stop` must not depend on the record.
    """

    name: ClassVar[str]
    reads_metrics: bool = True
    may_lag: bool = False

    def __init__(self, every: int = 1) -> None:
        self.every = every

    @property
    def stop(self) -> bool:
        """Whether training ends before the next step; must be the same on every rank."""
        return False

    def due(self, step: int, last: int) -> bool:
        """Whether the hook is called after `step` in a run that ends with step `last`."""
        return step % self.every == 0 or step == last

    def on_step(self, record: StepRecord) -> None:
        """Called after a step with its record; `record.add` adds metrics to it."""
        raise NotImplementedError

    def state_dict(self) -> HookState:
        """The state to store in a checkpoint, from rank 0; empty if there is none."""
        return {}

    def load_state_dict(self, state: HookState) -> None:
        """Restore the state that `state_dict` returned when the checkpoint was written. Every rank calls this."""
