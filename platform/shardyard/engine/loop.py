"""The training loop."""

from __future__ import annotations

import math
import time
from typing import Literal

from shardyard.data.stream.loader import filtered_share
from shardyard.engine.row_use import NUM_COUNTS
from shardyard.engine.session import Session
from shardyard.engine.step import StepResult, train_step
from shardyard.tracking.metrics import record as names
from shardyard.tracking.metrics.meters import memory_metrics
from shardyard.tracking.metrics.record import StepRecord

Outcome = Literal["finished", "interrupted", "preempted", "timeout", "paused"]
# The flag that rank 0 adds to the sum over ranks, by kind of stop request.
_STOP_FLAGS: dict[str, tuple[float, Outcome]] = {
    "interrupt": (1.0, "interrupted"),
    "preempt": (2.0, "preempted"),
    "timeout": (3.0, "timeout"),
}


def train(session: Session, *, until: int | None = None) -> Outcome:
    """Train from the newest checkpoint, or from the beginning, to the end; the caller saves the last checkpoint.

    Args:
        until: pause after this step, with a checkpoint.

    Returns:
        `finished` if all steps are done or early stopping ended the run; otherwise the reason of the stop. A stopped
        run has saved a checkpoint, unless it stopped before its first step.

    Raises:
        TrainingError: the loss, the gradient norm or a weight is not finite.
        DataError: a source failed.
        CheckpointError: a stop was requested, and its checkpoint could not be written.
        TakenOverError: another process has taken over the run.
    """
    done = session.restore()
    if done < session.plan.steps and (stopped := _stopped_before_start(session)) is not None:
        return stopped
    for step in range(done + 1, session.plan.steps + 1):
        if session.stopped_early:
            break
        record, stop = _one_step(session, step)
        session.after_step(record)
        outcome: Outcome | None = stop or ("paused" if step == until else None)
        if outcome is not None and step < session.plan.steps:
            session.checkpoint.save(step)
            return outcome
    return "finished"


def _one_step(session: Session, step: int) -> tuple[StepRecord, Outcome | None]:
    """Train on one global batch; returns its record, and the outcome if a stop was requested."""
    started = time.monotonic()
    learning_rate = session.learning_rate.set(session.factor(step - 1))
    batch = session.next_batch()
    waited = time.monotonic() - started
    result = train_step(
        session.engine,
        session.objective,
        batch,
        session.mesh,
        flag=_flag(session),
        counts=[*session.use.counts(batch), *(session.mixture.counts(batch) if session.mixture is not None else ())],
        changing=bool(session.plan.stages),
    )
    _check(session, result, step)
    session.use.take(result.counts[:NUM_COUNTS])
    if session.mixture is not None:
        session.mixture.take(step, result.counts[NUM_COUNTS:])
    session.statistics.average()
    metrics = {names.TRAIN_LOSS: result.loss, names.TRAIN_LR: learning_rate}
    wanted = session.needs_metrics(step)
    if wanted:
        metrics |= session.objective.train_metrics(result.totals)
    if result.grad_norm is not None:
        metrics[names.TRAIN_GRAD_NORM] = result.grad_norm
    if not result.applied:
        metrics["train/skipped"] = 1.0
    if session.recipe.train.precision == "fp16":
        metrics["train/loss_scale"] = float(session.engine.optimizer.loss_scale)
    metrics[names.TRAIN_TOKENS] = session.plan.tokens_at(step)
    stage = session.plan.stage_at(step)
    if stage is not None:
        session.meter.count(stage.flops_per_token)
    metrics |= session.meter.update(session.use.tokens(step), time.monotonic() - started, waited)
    if wanted:
        metrics |= memory_metrics() | session.use.metrics()
        if session.mixture is not None:
            metrics |= session.mixture.metrics()
        if any(source.filters for source in session.recipe.data.train):
            metrics[names.FILTERED] = filtered_share(session.loader.stats())
    stop = next((outcome for flag, outcome in _STOP_FLAGS.values() if flag == result.flags), None)
    return StepRecord(step, metrics), stop


def _flag(session: Session) -> float:
    reason = session.stop_requested()
    return _STOP_FLAGS[reason][0] if reason is not None else 0.0


def _stopped_before_start(session: Session) -> Outcome | None:
    """The outcome of a stop request during startup, when everything has already been saved."""
    flag = session.mesh.from_first(_flag(session))
    return next((outcome for value, outcome in _STOP_FLAGS.values() if value == flag), None)


def _check(session: Session, result: StepResult, step: int) -> None:
    """Raise if the loss or gradient is not finite: it would stay so, and continuing would only waste time.

    In fp16, the only cause may be too large a loss scale; DeepSpeed then lowers it and skips the step.
    """
    if session.recipe.train.precision == "fp16" and not result.applied and session.engine.optimizer.loss_scale > 1:
        return
    if not math.isfinite(result.loss):
        raise session.exploded(step, f"the loss is {result.loss} at step {step}")
    if result.applied and result.grad_norm is not None and not math.isfinite(result.grad_norm):
        raise session.exploded(step, f"the gradient norm is {result.grad_norm} at step {step}")
