"""The interface of a hook: work between steps, with its own interval and a state in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from pydantic import JsonValue

from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Event

# What a hook remembers, as a checkpoint keeps it: JSON.
HookState = Mapping[str, JsonValue]


class EventLog(Protocol):
    """Where a hook reports what happened; only rank 0's reaches the run folder."""

    def event(self, event: Event) -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...


class NullEventLog:
    """The event log of every rank but the first."""

    def event(self, event: Event) -> None:
        """Drop it."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Drop it."""


class Hook:
    """Work between two steps. The session runs its hooks in order, on every rank at the same steps.

    So a hook may use collectives, as long as every rank reaches them: none on the path of an error.

    name: unique within a run; a checkpoint keeps the state under it.
    every: steps between two calls; the last step of a run is always one.
    reads_metrics: whether it reads what the objective measured in training. They leave the device only at steps
        where something asks for them; without it a record may hold only what every step knows (loss, norm, speed).
    """

    name: ClassVar[str]
    reads_metrics: bool = True

    def __init__(self, every: int = 1) -> None:
        self.every = every

    @property
    def stop(self) -> bool:
        """Whether training ends before the next step; every rank has to give the same answer."""
        return False

    def due(self, step: int, last: int) -> bool:
        """Whether it is called after `step` of a run that ends with step `last`."""
        return step % self.every == 0 or step == last

    def on_step(self, record: StepRecord) -> None:
        """Called after a step with its record; `record.add` puts further metrics into it."""
        raise NotImplementedError

    def state_dict(self) -> HookState:
        """What a checkpoint keeps, as rank 0 has it; nothing where there is nothing to remember."""
        return {}

    def load_state_dict(self, state: HookState) -> None:
        """Take up what `state_dict` gave when the checkpoint was written. Every rank calls this."""
