"""What the loop works with: the parts of one run on one rank, assembled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import deepspeed
from transformers import PreTrainedConfig

from shardyard.data.stream.loader import Batch, TrainLoader
from shardyard.engine.checkpoint.checkpoint import Checkpointer, TrainerState
from shardyard.engine.checkpoint.explosion import way_back
from shardyard.engine.deepspeed.batch_norm import RunningStatistics
from shardyard.engine.deepspeed.engine import LearningRate
from shardyard.engine.hooks.hooks import CheckpointHook, EarlyStoppingHook, EventLog
from shardyard.engine.world import Rank, from_first
from shardyard.errors import TrainingError
from shardyard.objectives.base import Objective
from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.tracking.metrics.machine import MachineWatch
from shardyard.tracking.metrics.meters import Throughput
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run.folder import RunFolder

Hook = Callable[[int, dict[str, float]], None]


@dataclass
class Session:
    """One run on one rank. Built by `assemble`, driven by `train`."""

    recipe: Recipe
    plan: RunPlan
    rank: Rank
    folder: RunFolder
    tokenizer: Any
    config: PreTrainedConfig
    engine: deepspeed.DeepSpeedEngine
    objective: Objective
    loader: TrainLoader
    factor: Callable[[int], float]
    learning_rate: LearningRate
    checkpointer: Checkpointer
    notes: EventLog
    tracker: Tracker | None
    meter: Throughput
    machine: MachineWatch | None = None
    processor: Any = None
    early_stopping: EarlyStoppingHook | None = None
    hooks: list[tuple[Callable[[int], bool], Hook]] = field(default_factory=list)
    streams: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkpoint = CheckpointHook(
            self.checkpointer, self._state, self.notes, self.exploded, self.folder.check_held
        )
        self.statistics = RunningStatistics(self.engine.module, self.rank.world_size)

    @property
    def stopped_early(self) -> bool:
        """Whether a validation metric has ended the run, in this process or before it was resumed."""
        return self.early_stopping is not None and self.early_stopping.stop

    def restore(self) -> int:
        """Load the newest whole checkpoint if there is one; returns the number of steps that are done."""
        found = self.checkpointer.restore(lambda text: self.notes.event("notice", text=text))
        done = 0
        if found is not None:
            state, streams = found
            self.loader.load_state(streams)
            self.checkpoint.saved_step = done = state.step
            if self.early_stopping is not None and "early_stopping" in state.hooks:
                self.early_stopping.load(state.hooks["early_stopping"])
        number = self.folder.info().attempts
        self.notes.event("attempt", number=number, world_size=self.rank.world_size, resumed_step=done or None)
        return done

    def next_batch(self) -> Batch:
        """This rank's rows of the next global batch; their streams' state is what a checkpoint saves."""
        batch = next(self.loader)
        self.streams = batch.state
        return batch

    def stop_requested(self) -> str | None:
        """Why the run should stop, as rank 0 sees it; the others hear of it through the step's sum.

        Raises:
            TakenOverError: another process trains the run by now.
        """
        if self.rank.is_first:
            self.folder.check_held()
        return self.folder.stop_requested() if self.rank.is_first else None

    def tell(self, record: StepRecord) -> None:
        """Record a step if it is due; what an evaluation measured is always recorded."""
        due = record.step % self.plan.record_every == 0 or record.step == self.plan.steps
        if self.tracker is None or not (due or any(name.startswith("eval/") for name in record.metrics)):
            return
        if self.machine is not None:
            record = replace(record, metrics={**record.metrics, **self.machine.take()})
        self.tracker.record(record)

    def finish(self) -> None:
        """Save the last checkpoint.

        Raises:
            CheckpointError: it could not be written.
        """
        self.checkpoint.save(self.engine.global_steps)

    def exploded(self, step: int, what: str) -> TrainingError:
        """The error that ends a run of which a value is no number at `step`; all ranks call this."""
        text = way_back(self.folder, self.recipe.optimizer.lr, step, what) if self.rank.is_first else ""
        return TrainingError(from_first(text, self.rank))

    def close(self, outcome: str = "failed") -> None:
        """Stop reading ahead and let tracking finish; `outcome` is how the run ended."""
        self.loader.close()
        if self.machine is not None:
            self.machine.close()
        if self.tracker is not None:
            self.tracker.close(outcome=outcome)

    def _state(self, step: int) -> tuple[TrainerState, dict[str, Any]]:
        hooks = {"early_stopping": self.early_stopping.state()} if self.early_stopping is not None else {}
        return TrainerState(step=step, tokens=step * self.plan.tokens_per_step, hooks=hooks), self.streams
