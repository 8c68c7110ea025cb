"""What a run does about anomalies: steps that it skips, its learning rate, its way back, and what it tells of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import deepspeed

from shardyard.engine.anomalies.documents import AnomalyDocumentsFinder
from shardyard.engine.anomalies.guard import Guard
from shardyard.engine.anomalies.policy import Anomaly, Policy
from shardyard.engine.anomalies.record import Rollback, add_rollback, read_rollbacks
from shardyard.engine.checkpoint.explosion import newest_before
from shardyard.engine.deepspeed.batch_norm import RunningStatistics
from shardyard.engine.hooks.base import EventLog, Hook, HookState
from shardyard.engine.mesh import Mesh
from shardyard.errors import RollbackError, ShardyardError, TrainingError
from shardyard.planning.plan import RunPlan
from shardyard.planning.stages import rows_planned
from shardyard.recipe.lengths import skipped_steps
from shardyard.recipe.schema import Recipe
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import AnomalyFound
from shardyard.tracking.run.folder import RunFolder


@dataclass(frozen=True)
class Seen:
    """What the policy judges of a step. norm: None where fp16 merely had too large a loss scale."""

    loss: float
    norm: float | None
    judged: bool
    anomaly: Anomaly | None


class AnomalyHook(Hook):
    """The policy with its state in checkpoints. Not called after steps: the loop asks it.

    guard: judges before updates; None if no action of the recipe keeps a batch from the weights.
    """

    name: ClassVar[str] = "anomalies"
    reads_metrics = False
    may_lag = True

    def __init__(
        self,
        recipe: Recipe,
        plan: RunPlan,
        engine: deepspeed.DeepSpeedEngine,
        mesh: Mesh,
        folder: RunFolder,
        events: EventLog,
        statistics: RunningStatistics,
        exploded: Callable[[int, str], TrainingError],
        settle: Callable[[], None],
        compare: Callable[[int], None],
    ) -> None:
        """`exploded` makes the error of a run that ends; `settle` waits for a checkpoint that is being written;
        `compare` raises if ranks do not hold the same weights."""
        super().__init__()
        self._recipe, self._plan, self._mesh, self._folder, self._events = recipe, plan, mesh, folder, events
        self._exploded, self._settle, self._compare = exploded, settle, compare
        settings = recipe.anomalies
        rollbacks: tuple[Rollback, ...] = mesh.from_first(read_rollbacks(folder) if mesh.is_first else ())
        self._skipped = skipped_steps(recipe.train.skip_steps) | {step for one in rollbacks for step in one.skipped}
        self._policy = Policy(settings, rolled_back=len(rollbacks), stage=plan.stage_at)
        acts = {"skip", "lower_rate"} & {settings.on_nan, settings.on_spike}
        self.guard = Guard(engine, mesh, self._policy, statistics) if acts else None
        self._documents = AnomalyDocumentsFinder(folder, events) if mesh.is_first else None

    def due(self, step: int, last: int) -> bool:
        """Never."""
        return False

    def on_step(self, record: StepRecord) -> None:
        """Nothing."""

    def skips(self, step: int) -> bool:
        """Whether a step is passed over, because the recipe says so or a rollback did."""
        return step in self._skipped

    def rate_factor(self, step: int) -> float:
        """The factor of the learning rate at a step."""
        return self._policy.rate_factor(step)

    def take(self, step: int, seen: Seen) -> None:
        """Judge a step, unless its batch was judged before, and carry out what follows; all ranks call this.

        Raises:
            TrainingError: the run ends.
            RollbackError: it goes back to a checkpoint.
            ReplicasError: the weights of a rank are wrong, not the batch.
        """
        found = seen.anomaly if seen.judged else self._policy.judge(step, seen.loss, seen.norm)
        if found is None:
            return
        self._compare(step)
        if found.action == "stop":
            self._tell(found)
            self._wait()
            raise self._exploded(step, in_words(found, self._recipe.anomalies.at_most))
        if found.action == "rollback":
            raise self._rolled_back(found)
        self._tell(found)

    def close(self) -> None:
        """Wait for documents that are being found."""
        self._wait()

    def state_dict(self) -> HookState:
        """What later decisions depend on."""
        return self._policy.state_dict()

    def load_state_dict(self, state: HookState) -> None:
        """Continue from a checkpoint."""
        self._policy.load_state_dict(state)

    def _wait(self) -> None:
        if self._documents is not None:
            self._documents.wait()

    def _tell(self, found: Anomaly, skipped: tuple[int, ...] = (), checkpoint_step: int | None = None) -> None:
        if self._documents is None:
            return
        batch, stages = self._recipe.train.global_batch, self._plan.stages
        first, end = (rows_planned(steps, batch, stages) for steps in (found.step - 1, found.step))
        self._events.event(
            AnomalyFound(
                step=found.step,
                what=found.kind,
                signal=found.signal,
                value=f"{found.value:.6g}",
                usual=found.usual,
                score=found.score if found.score is None or math.isfinite(found.score) else None,
                action=found.action,
                count=found.count,
                at_most=self._recipe.anomalies.at_most,
                first_row=first,
                last_row=end - 1,
                skipped=skipped,
                checkpoint_step=checkpoint_step,
            )
        )
        self._documents.find(found.step)

    def _rolled_back(self, found: Anomaly) -> ShardyardError:
        """Record where the run goes back to and what it skips; the error that ends this attempt on all ranks."""
        self._settle()
        problem, text = self._mesh.from_first(self._record(found) if self._mesh.is_first else ("", ""))
        return TrainingError(problem) if problem else RollbackError(text)

    def _record(self, found: Anomaly) -> tuple[str, str]:
        """Only rank 0 calls this; why it failed, or what was done."""
        what = in_words(found, self._recipe.anomalies.at_most)
        first = max(1, found.step - self._recipe.anomalies.before)
        skipped = tuple(step for step in range(first, found.step + 1) if step not in self._skipped)
        back = newest_before(self._folder, first, found.step, what)
        try:
            add_rollback(
                self._folder, Rollback(found.step, found.signal, f"{found.value:.6g}", skipped, checkpoint_step=back)
            )
        except OSError as error:
            return f"{what}, and the rollback could not be recorded: {error}", ""
        self._tell(found, skipped, back)
        self._wait()
        where = f"the checkpoint of step {back}" if back else "the beginning"
        return "", f"{what}: the run goes on from {where} and skips the batches of {', '.join(map(str, skipped))}"


def in_words(found: Anomaly, at_most: int) -> str:
    """`the loss is 9.12 at step 1203, 14.2 deviations above 2.31`."""
    name = "gradient norm" if found.signal == "grad_norm" else found.signal
    high = f", {found.score:.1f} deviations above {found.usual:.4g}" if found.score is not None else ""
    used = f" (anomalies.at_most is {at_most}, and used up)" if found.exceeded else ""
    value = found.value if found.kind == "nan" else float(f"{found.value:.6g}")
    return f"the {name} is {value} at step {found.step}{high}{used}"
