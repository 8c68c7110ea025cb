"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from shardyard.data.stream.loader import filtered_share
from shardyard.engine.anomalies.hook import Seen
from shardyard.engine.collecting import GarbageCollection
from shardyard.engine.profiling.profiler import StepProfiler
from shardyard.engine.profiling.spans import span
from shardyard.engine.row_use import NUM_COUNTS
from shardyard.engine.session import Session
from shardyard.engine.step import StepResult, StepUnderway, skipped_step, start_step
from shardyard.engine.watch.collectives import watch_compilation
from shardyard.errors import ShardyardError
from shardyard.tracking.metrics import record as names
from shardyard.tracking.metrics.meters import memory_metrics
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.watch.beat import BEAT, HOOK

Outcome = Literal["finished", "interrupted", "preempted", "timeout", "paused", "resized"]
# The flag that rank 0 adds to the sum over ranks, by kind of stop request.
_STOP_FLAGS: dict[str, tuple[float, Outcome]] = {
    "interrupt": (1.0, "interrupted"),
    "preempt": (2.0, "preempted"),
    "timeout": (3.0, "timeout"),
    "resize": (4.0, "resized"),
}
# Added to it when a checkpoint falls due by the clock.
_TIMED = 8.0


def train(session: Session, *, until: int | None = None) -> Outcome:
    """Train from the newest checkpoint, or from the beginning, to the end; the caller saves the last checkpoint.

    Args:
        until: pause after this step, with a checkpoint; at once if the newest checkpoint is not before it.

    Returns:
        `finished` if all steps are done or early stopping ended the run; otherwise the reason of the stop. A stopped
        run has saved a checkpoint, unless it stopped before its first step.

    Raises:
        TrainingError: the loss, the gradient norm or a weight is not finite, or spikes, and the recipe ends the run.
        RollbackError: the same, and the recipe goes back to a checkpoint; what is skipped from there is recorded.
        ReplicasError: ranks do not hold the same weights any more.
        DataError: a source failed.
        CheckpointError: a stop was requested, and its checkpoint could not be written.
        TakenOverError: another process has taken over the run.
    """
    done = session.restore()
    if done < session.plan.steps and (stopped := _stopped_before_start(session)) is not None:
        return stopped
    if until is not None and until <= done < session.plan.steps:
        # A process that died between this checkpoint and its own end, or a command that is given again.
        return "paused"
    left = session.plan.steps - done
    watch_compilation()
    profiler = StepProfiler(
        session.recipe, session.plan, session.folder, session.mesh, left=left, report=session.notice
    )
    with GarbageCollection(left) as garbage, contextlib.closing(profiler):
        return _train_on(session, done, until, garbage, profiler)


def _train_on(
    session: Session, done: int, until: int | None, garbage: GarbageCollection, profiler: StepProfiler
) -> Outcome:
    """Train from step `done` on. On GPUs, a result is taken while the next step already runs (`steps_ahead`)."""
    underway: deque[_Underway] = deque()
    for step in range(done + 1, session.plan.steps + 1):
        if session.stopped_early:
            break
        with profiler.step(step):
            if session.plan.stage_at(step) != session.plan.stage_at(step - 1):
                # What a stage changes takes longer at first, such as shapes that kernels have not seen.
                BEAT.forget_steps()
            BEAT.begin_step(step)
            session.limits.in_step()
            underway.append(_begin(session, step, underway))
            garbage.after(step)
            stop = _take_due(session, underway, 0 if step == until else session.steps_ahead(step))
            BEAT.end_step()
            if session.checkpoint.timed:
                session.limits.beside_step()
                with span(f"{HOOK}checkpoint"):
                    session.checkpoint.on_time(step)
        outcome: Outcome | None = stop or ("paused" if step == until else None)
        if outcome is not None and step < session.plan.steps:
            session.limits.beside_step()
            with span(f"{HOOK}checkpoint"):
                session.checkpoint.save(step)
            return outcome
    _take_due(session, underway, 0)
    session.limits.beside_step()
    return "finished"


def _take_due(session: Session, underway: deque[_Underway], ahead: int) -> Outcome | None:
    """Take results until `ahead` steps are left; returns the outcome if a stop was requested."""
    stop: Outcome | None = None
    while len(underway) > ahead:
        stop = _take(session, underway) or stop
        # A checkpoint is that of the newest step, whose result is therefore taken too.
        ahead = 0 if stop is not None or session.checkpoint.timed else ahead
    return stop


@dataclass(frozen=True)
class _Underway:
    """A step that the device may still be computing. `loss_scale`: in fp16, after the step."""

    step: int
    started: float
    waited: float
    learning_rate: float
    loss_scale: float | None
    wanted: bool
    work: StepUnderway


def _begin(session: Session, step: int, before: deque[_Underway]) -> _Underway:
    """Give the work of one global batch to the device.

    Args:
        before: steps whose results have not been taken; they are recorded if there is no batch for this one.
    """
    started = time.monotonic()
    learning_rate = session.learning_rate.set(session.factor(step - 1) * session.anomalies.rate_factor(step))
    try:
        with span("data"):
            batch = session.next_batch()
    except ShardyardError:
        while before:
            _take(session, before)
        raise
    waited = time.monotonic() - started
    wanted = session.needs_metrics(step)
    counts = [*session.use.counts(batch), *(session.mixture.counts(batch) if session.mixture is not None else ())]
    if session.anomalies.skips(step):
        work = skipped_step(session.engine, session.objective, batch, session.mesh, flag=_flags(session), counts=counts)
    else:
        work = start_step(
            session.engine,
            session.objective,
            batch,
            session.mesh,
            session.copies,
            flag=_flags(session),
            counts=counts,
            changing=bool(session.plan.stages),
            observed=wanted,
            step=step,
            guard=session.anomalies.guard,
            replicas=session.replicas,
        )
        # What a skipped batch left has been put back.
        if work.anomaly is None or not work.anomaly.skips:
            session.statistics.average()
    if session.replicas is not None and step % session.recipe.cluster.replicas.every == 0:
        session.compare_replicas(step)
    fp16 = session.recipe.train.precision == "fp16"
    loss_scale = float(session.engine.optimizer.loss_scale) if fp16 else None
    return _Underway(step, started, waited, learning_rate, loss_scale, wanted, work)


def _take(session: Session, underway: deque[_Underway]) -> Outcome | None:
    """Take the result of the oldest step and call its hooks; returns the outcome if a stop was requested."""
    one = underway.popleft()
    with span("result"):
        result = one.work.result()
    _check(session, result, one)
    is_due = result.flags >= _TIMED
    session.checkpoint.timed |= is_due
    session.use.take(result.counts[:NUM_COUNTS])
    if session.mixture is not None:
        session.mixture.take(one.step, result.counts[NUM_COUNTS:])
    with span("hooks"):
        session.after_step(StepRecord(one.step, _metrics(session, one, result)))
    asked = result.flags - (_TIMED if is_due else 0)
    return next((outcome for flag, outcome in _STOP_FLAGS.values() if flag == asked), None)


def _metrics(session: Session, one: _Underway, result: StepResult) -> dict[str, float]:
    """The metrics of a step whose result has just been taken."""
    step = one.step
    metrics = {names.TRAIN_LOSS: result.loss, names.TRAIN_LR: one.learning_rate}
    if one.wanted and result.computed:
        metrics |= session.objective.train_metrics(result.totals)
    if result.grad_norm is not None:
        metrics[names.TRAIN_GRAD_NORM] = result.grad_norm
    if not result.applied:
        # A batch that was skipped may have none of these; fp16 has a norm that is infinite.
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if not result.applied:
        metrics["train/skipped"] = 1.0
    if one.loss_scale is not None:
        metrics["train/loss_scale"] = one.loss_scale
    metrics[names.TRAIN_TOKENS] = session.plan.tokens_at(step)
    stage = session.plan.stage_at(step)
    if stage is not None:
        session.meter.count(stage.flops_per_token)
    metrics |= session.meter.update(session.use.tokens(step), session.since_last_result(one.started), one.waited)
    if one.wanted:
        metrics |= memory_metrics() | session.use.metrics()
        if session.mixture is not None:
            metrics |= session.mixture.metrics()
        if any(source.filters for source in session.recipe.data.train):
            metrics[names.FILTERED] = filtered_share(session.loader.stats())
    return metrics


def _flag(session: Session) -> float:
    reason = session.stop_requested()
    return _STOP_FLAGS[reason][0] if reason is not None else 0.0


def _flags(session: Session) -> float:
    """What rank 0 tells the others with a step's sum."""
    due = session.mesh.is_first and session.checkpoint.falls_due()
    return _flag(session) + (_TIMED if due else 0.0)


def _stopped_before_start(session: Session) -> Outcome | None:
    """The outcome of a stop request during startup, when everything has already been saved."""
    flag = session.mesh.from_first(_flag(session))
    return next((outcome for value, outcome in _STOP_FLAGS.values() if value == flag), None)


def _check(session: Session, result: StepResult, one: _Underway) -> None:
    """Do what the recipe says follows if the loss or gradient is not finite, or a spike.

    In fp16, the only cause of an infinite gradient may be too large a loss scale; DeepSpeed then lowers it and skips
    the step.
    """
    if not result.computed:
        return
    scaled = one.loss_scale is not None and not result.applied and one.loss_scale > 1
    norm = None if scaled else result.grad_norm
    session.anomalies.take(one.step, Seen(result.loss, norm, one.work.judged, one.work.anomaly))
