"""The assembled parts of one run on one rank."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import deepspeed
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

from shardyard.data.ledger.record import Header, LedgerWriter
from shardyard.data.stream.loader import Batch, TrainLoader
from shardyard.data.stream.streams import StreamStates
from shardyard.engine.anomalies.hook import AnomalyHook
from shardyard.engine.anomalies.replicas import Replicas
from shardyard.engine.checkpoint.checkpoint import Checkpointer, TrainerState
from shardyard.engine.checkpoint.explosion import way_back
from shardyard.engine.checkpoint.files import wait_for_removals
from shardyard.engine.deepspeed.batch_norm import RunningStatistics
from shardyard.engine.deepspeed.engine import LearningRate
from shardyard.engine.hooks.base import EventLog, Hook
from shardyard.engine.hooks.checkpoints import CheckpointHook
from shardyard.engine.hooks.mixture import MixtureHook
from shardyard.engine.hooks.recording import RecordHook
from shardyard.engine.mesh import Mesh
from shardyard.engine.offload.quirks import remove_files
from shardyard.engine.row_use import RowUse
from shardyard.engine.transfer import Copies
from shardyard.engine.watch.limits import CollectiveLimits
from shardyard.errors import CheckpointError, ReplicasError, TrainingError
from shardyard.objectives.base import Objective
from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.tracking.metrics.machine import MachineWatch
from shardyard.tracking.metrics.meters import Throughput
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run.events import Attempt, Notice, ReplicasDiffer
from shardyard.tracking.run.folder import RunFolder, typed
from shardyard.tracking.watch.beat import BEAT, HOOK


@dataclass
class Session:
    """One run on one rank. Built by `assemble`, driven by `train`.

    `tokenizer` and `generates` are those of the exported model, which samples during training use too. `frozen`: the
    teacher or reference model, if it is a model of its own.
    """

    recipe: Recipe
    plan: RunPlan
    mesh: Mesh
    folder: RunFolder
    tokenizer: Any
    config: PreTrainedConfig
    engine: deepspeed.DeepSpeedEngine
    objective: Objective
    loader: TrainLoader
    factor: Callable[[int], float]
    learning_rate: LearningRate
    checkpointer: Checkpointer
    event_log: EventLog
    tracker: Tracker | None
    meter: Throughput
    frozen: nn.Module | None = None
    machine: MachineWatch | None = None
    processor: Any = None
    generates: GenerationConfig | None = None
    mixture: MixtureHook | None = None
    hooks: list[Hook] = field(default_factory=list)
    streams: StreamStates = field(default_factory=dict)
    ledger: LedgerWriter | None = None

    def __post_init__(self) -> None:
        self.use = RowUse(self.recipe, self.plan, self.mesh)
        self.copies = Copies(self.mesh.device)
        # Whether the host may be a step ahead of the device; a CPU is the device itself.
        self.runs_ahead = self.mesh.device.type == "cuda"
        # Steps whose batches were taken.
        self._taken = 0
        self._last_result = 0.0
        # When the newest checkpoint had been read, in seconds since 1970.
        self.restored = 0.0
        self.checkpoint = CheckpointHook(
            self.checkpointer,
            self._state,
            self.event_log,
            self.exploded,
            self.folder.check_held,
            self._verify_replicas,
            every=self.plan.checkpoint_every,
            seconds=self.plan.checkpoint_seconds,
        )
        self.recorder = RecordHook(
            self.tracker, self.machine, record_every=self.plan.record_every, last=self.plan.steps
        )
        self.limits = CollectiveLimits(self.recipe.cluster.network.timeout, alone=self.mesh.world.size == 1)
        self.statistics = RunningStatistics(self.engine.module, self.mesh.data)
        self.anomalies = AnomalyHook(
            self.recipe,
            self.plan,
            self.engine,
            self.mesh,
            self.folder,
            self.event_log,
            self.statistics,
            self.exploded,
            self._settle,
            self.compare_replicas,
        )
        self.hooks.append(self.anomalies)
        compared = self.recipe.cluster.replicas.every > 0 and self.mesh.zero.size > 1
        copies = self.recipe.zero.hpz_partition_size
        self.replicas = Replicas(self.engine.module, self.mesh, second_copies=copies) if compared else None

    @property
    def stopped_early(self) -> bool:
        """Whether a hook has ended the run, in this process or before it was resumed."""
        return any(hook.stop for hook in self.hooks)

    def last_step(self, step: int) -> int:
        """The last step of the run, as it is known in `step`: that of the plan, unless the sources end before."""
        ends = self.mixture is not None and self.mixture.stop
        return step if ends else self.plan.steps

    def needs_metrics(self, step: int) -> bool:
        """Whether a hook needs the objective's metrics of this step on the host."""
        return self.recorder.wants(step) or any(
            hook.reads_metrics and hook.due(step, self.last_step(step)) for hook in self.hooks
        )

    def notice(self, text: str) -> None:
        """Log a message."""
        self.event_log.event(Notice(text=text))

    def steps_ahead(self, step: int) -> int:
        """How many steps may be underway once the host has begun `step`: 1, or 0 if the next one depends on its result.

        With one, the device always has work: the host waits for the result of a step while the next one is queued.
        """
        last = self.last_step(step)
        depends = (
            not self.runs_ahead
            or step == last
            or (self.mixture is not None and self.mixture.may_end)
            or any(not hook.may_lag and hook.due(step, last) for hook in self.hooks)
        )
        return 0 if depends else 1

    def since_last_result(self, started: float) -> float:
        """Seconds that a step took whose result has just arrived: since it began, or since the result before it."""
        before, self._last_result = self._last_result, time.monotonic()
        return self._last_result - max(before, started)

    def after_step(self, record: StepRecord) -> None:
        """Call the hooks that are due, in order. Metrics are recorded even if a hook fails."""
        self.checkpoint.poll()
        try:
            for hook in self.hooks:
                if hook.due(record.step, self.last_step(record.step)):
                    if not hook.may_lag:
                        self.limits.beside_step()
                    with BEAT.part(f"{HOOK}{hook.name}"):
                        hook.on_step(record)
        finally:
            self.recorder.on_step(record)

    def restore(self) -> int:
        """Load the newest checkpoint if there is one; returns the number of completed steps."""
        found = self.checkpointer.restore(lambda text: self.event_log.event(Notice(text=text, warns=True)))
        done = 0
        if found is not None:
            state, streams = found
            self.loader.load_state(streams)
            self.streams = self.loader.state()
            self.checkpoint.saved_step = done = state.step
            for hook in self.hooks:
                if hook.name in state.hooks:
                    hook.load_state_dict(state.hooks[hook.name])
        self.restored = time.time()
        number = self.folder.info().attempts
        self.ledger = self._ledger(number, done)
        self.event_log.event(Attempt(number=number, world_size=self.mesh.world.size, resumed_step=done or None))
        return done

    def next_batch(self) -> Batch:
        """This rank's rows of the next global batch; checkpoints save the state of the streams after it."""
        batch = next(self.loader)
        self.streams = batch.state
        self._taken += 1
        if self.ledger is not None:
            self.ledger.after(self._taken, batch.state)
        return batch

    def _ledger(self, attempt: int, done: int) -> LedgerWriter:
        """The ledger of this rank's rows from here on."""
        header = Header(
            step=done,
            streams=self.plan.streams,
            seed=self.recipe.train.seed,
            global_batch=self.recipe.train.global_batch,
            readers=self.mesh.data.size,
            data=self.recipe.data.model_dump(mode="json"),
        )
        ledger = LedgerWriter(self.folder.ledger, attempt, self.mesh.rank, header)
        if done:
            ledger.write(done, self.streams)
        self._taken = done
        return ledger

    def stop_requested(self) -> str | None:
        """The stop request as rank 0 sees it; the others get it through the step's sum.

        Raises:
            TakenOverError: another process has taken over the run.
        """
        if self.mesh.is_first:
            self.folder.check_held()
        if not self.mesh.is_first:
            return None
        return self.folder.stop_requested() or ("resize" if self.folder.resize_requested() else None)

    def compare_replicas(self, step: int) -> None:
        """Compare what ranks hold in common; all ranks call this.

        Raises:
            ReplicasError: it differs, and the recipe restarts the run then.
            TrainingError: the same, and the recipe ends the run.
        """
        found = None if self.replicas is None else self.replicas.compare(step, self.statistics.tensors())
        if self.replicas is None or found is None:
            return
        self.event_log.event(
            ReplicasDiffer(step=step, ranks=found.ranks, compared_step=self.replicas.compared_before, text=found.text)
        )
        then = self.recipe.cluster.replicas.then
        if then == "report":
            return
        text = (
            f"the weights of ranks differ at step {step}: {found.text}. Memory or a processor of these ranks may fail"
        )
        if then == "restart":
            raise ReplicasError(f"{text}; what was trained since the newest checkpoint is not used.")
        raise TrainingError(
            f"{text}: replace them; `shardyard resume {typed(self.folder.path)}` continues from the newest checkpoint."
        )

    def _verify_replicas(self, step: int) -> None:
        if self.replicas is not None:
            self.replicas.add()
            self.compare_replicas(step)

    def _settle(self) -> None:
        with contextlib.suppress(CheckpointError):
            self.checkpoint.settle()

    def finish(self) -> None:
        """Save the last checkpoint.

        Raises:
            CheckpointError: the checkpoint could not be written.
        """
        self.checkpoint.save(self.engine.global_steps)

    def exploded(self, step: int, what: str) -> TrainingError:
        """The error for a run with a value that is not finite at `step`; all ranks call this."""
        self._settle()
        text = way_back(self.folder, self.recipe.optimizer.lr, step, what) if self.mesh.is_first else ""
        return TrainingError(self.mesh.from_first(text))

    def close(self, outcome: str = "failed") -> None:
        """Stop reading ahead and let tracking finish; `outcome` is how the run ended."""
        self.loader.close()
        # What was saved before a failure is not lost with it.
        with contextlib.suppress(CheckpointError, RuntimeError):
            self.checkpoint.settle()
        self.anomalies.close()
        remove_files(self.engine)
        wait_for_removals()
        if self.ledger is not None:
            self.ledger.close()
        if self.machine is not None:
            self.machine.close()
        if self.tracker is not None:
            self.tracker.close(outcome=outcome)

    def _state(self, step: int) -> tuple[TrainerState, StreamStates]:
        hooks = {hook.name: state for hook in self.hooks if (state := hook.state_dict())}
        return TrainerState(step=step, tokens=self.plan.tokens_at(step), hooks=hooks), self.streams
