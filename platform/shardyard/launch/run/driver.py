"""The driver of a run: attempts, recovery, and its state in the run folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from shardyard.engine.checkpoint.remote.copying import mirrored
from shardyard.engine.job import Job
from shardyard.errors import RunFolderError, TakenOverError, TrainingError
from shardyard.launch.ray.attempt import Kept, attempt, attempt_again
from shardyard.launch.ray.cluster import ray_cluster
from shardyard.launch.ray.elastic import Growth, sizes_of_job
from shardyard.launch.ray.queue import hold_slot, placed
from shardyard.launch.ray.resources import Resources
from shardyard.launch.ray.worker_group import NotPlacedError
from shardyard.launch.run.recovery import Count, Failure, GiveUp, decide
from shardyard.launch.run.settle import report_precision, settle
from shardyard.tracking.run.events import AttemptFailed, Cause, Notice, Waiting, write_event
from shardyard.tracking.run.folder import RunFolder, owner, typed
from shardyard.tracking.run.waiting import Wait

if TYPE_CHECKING:
    from shardyard.engine.loop import Outcome

STATES: dict[Outcome, str] = {
    "finished": "finished",
    "interrupted": "interrupted",
    "preempted": "preempted",
    "timeout": "interrupted",
    "paused": "interrupted",
}
STOP_POLL_SECONDS = 0.25
# The outcome of a stop request while the run waits.
STOPPED_WAITING: dict[str, Outcome] = {"interrupt": "interrupted", "preempt": "preempted", "timeout": "timeout"}


def drive(job: Job, carry: Callable[[Job], Outcome]) -> Outcome:
    """Run a job and keep its run.json up to date; returns the outcome.

    The caller has removed requests to earlier processes, so an existing request is for this process.

    Args:
        carry: trains the job: `locally`, `on_ray`, or as a trial of a sweep.

    Raises:
        ShardyardError: the run failed; run.json says `failed`.
        TakenOverError: another process now trains the run; run.json is left to that process.
        CheckpointError: the object store of `checkpoint.mirror` cannot be written.
    """
    with mirrored(job.recipe.checkpoint, job.folder):
        return _drive(job, carry)


def _drive(job: Job, carry: Callable[[Job], Outcome]) -> Outcome:
    job.folder.update(state="running", waiting=None, **owner())
    if job.recipe.train.precision is not None:
        report_precision(job.plan.precision, job.plan.reasons["precision"], lambda text: _log_notice(job, text))
    try:
        outcome = _stopped(job) or carry(job)
    except BaseException as error:
        # If that cannot be written either, the run counts as lost once this process has ended.
        with contextlib.suppress(RunFolderError):
            job.folder.update(state="interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    job.folder.update(state=STATES[outcome], waiting=None)
    return outcome


def locally(job: Job, *, keep_group: bool = False, tells: int | None = None) -> Outcome:
    """Train once as the only rank, in this process; `keep_group` and `tells` as in `run_local`.

    Raises:
        Exception: the error that ended training, unchanged. It is also logged as an event.
    """
    from shardyard.launch.run.local import run_local

    count_attempt(job)
    try:
        return run_local(job, keep_group=keep_group, rolled_back=lambda: count_attempt(job), tells=tells)
    except TakenOverError:
        raise
    except Exception as error:
        message = str(error).strip() or type(error).__name__
        with contextlib.suppress(OSError):
            write_event(job.folder.events, _failed(Failure({message: (0,)}, permanent=True)))
        raise


def _stopped(job: Job) -> Outcome | None:
    """The outcome of a stop request while no rank trains; None without a request."""
    reason = job.folder.stop_requested()
    return STOPPED_WAITING.get(reason, "interrupted") if reason is not None else None


def on_ray(job: Job) -> Outcome:
    """Train on Ray's workers once they are free and this job is first in the queue, with recovery from failures.

    Raises:
        ShardyardError: Ray is not available, or the job could never fit.
        TrainingError: training failed, and there is no further attempt.
    """

    def stopped() -> bool:
        return job.folder.stop_requested() is not None

    _log_notice(job, f"starting {job.plan.world.size} Ray workers")
    with ray_cluster(job.recipe.cluster) as cluster, Kept() as kept:
        sizes = sizes_of_job(job, cluster.requested)
        resources = Resources([one.demand for one in sizes], cluster, lambda wait: _log_waiting(job, wait), stopped)

        def look(trained: Job) -> Callable[[], None]:
            return Growth(trained, sizes, cluster.nodes, lambda text: _log_notice(job, text)).look

        def start() -> Outcome | Failure:
            job.folder.clear_resize()
            if kept.ready:
                count_attempt(job)
                kept.note(waited=time.time())
                if (ended := attempt_again(kept, look)) is not None:
                    return ended
                count_attempt(job, by=-1)
            is_first = hold_slot(stopped, lambda ahead: _log_waiting(job, Wait("queue", jobs_ahead=ahead)))
            found = resources.wait() if is_first else None
            if found is None or stopped():
                raise NotStartedError
            demand, placement = found
            sized = _on_fewer(job, next(one.job for one in sizes if one.workers == demand.workers))
            settled = settle(sized, cluster, demand, placement, lambda text: _log_notice(job, text))
            count_attempt(job)
            kept.note(waited=time.time())
            try:
                # The next job of the queue may start as soon as the workers of this one have their resources.
                return attempt(settled, demand, placement, on_placed=placed, kept=kept, look=look(settled))
            except NotPlacedError as error:
                count_attempt(job, by=-1)
                if error.wait is not None:
                    _log_waiting(job, error.wait)
                raise NotStartedError from None

        return until_done(job, start)


def _on_fewer(job: Job, sized: Job) -> Job:
    """Note the number of ranks of an attempt, and say if it is not the one that the recipe asks for."""
    size, asked = sized.plan.world.size, job.plan.world.size
    job.folder.update(world_size=size)
    if size != asked:
        least = job.recipe.cluster.min_workers
        plan = f"micro-batch {sized.plan.micro_batch} × {sized.plan.accumulation}"
        _log_notice(job, f"no room for {asked} workers: trains on {size} (cluster.min_workers {least}), {plan}")
    return sized


class NotStartedError(Exception):
    """No rank has started: a stop was requested during the wait, or its resources were taken."""


class GaveUpError(TrainingError):
    """Training failed, and there is no further attempt. failure: of the last one."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


def until_done(job: Job, start: Callable[[], Outcome | Failure]) -> Outcome:
    """Start the ranks repeatedly, following the recipe's policy, until they are done or a stop is requested.

    Args:
        start: starts them and waits for their end.

    Raises:
        GaveUpError: training failed, and there is no further attempt.
    """
    count = Count()
    while (outcome := _stopped(job)) is None:
        try:
            ended = start()
        except NotStartedError:
            continue
        if ended == "resized":
            continue
        if not isinstance(ended, Failure):
            return ended
        if not ended.rollback:
            count = count.after(saved_step(job.folder))
        _recover(job, ended, count)
    return outcome


def _log_notice(job: Job, text: str) -> None:
    write_event(job.folder.events, Notice(text=text))


def _log_waiting(job: Job, wait: Wait) -> None:
    job.folder.update(waiting=wait)
    write_event(job.folder.events, Waiting(wait=wait))


def count_attempt(job: Job, by: int = 1) -> None:
    """Count an attempt in run.json; `by` -1 reverts it."""
    attempts = job.folder.info().attempts + by
    job.folder.update(attempts=attempts, outcome=None, placement=None)


def saved_step(folder: RunFolder) -> int:
    """Step of the newest checkpoint of a run; 0 before the first."""
    names = (path.name.removeprefix("step-") for path in folder.checkpoints.glob("step-*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _recover(job: Job, failure: Failure, count: Count) -> None:
    """Wait for the next attempt, or until a stop is requested.

    Raises:
        GaveUpError: there is no further attempt.
    """
    job.folder.check_held()
    if not failure.permanent and (outcome := _stopped(job)) is not None:
        # Schedulers that signal every process of a job may have ended the ranks too.
        stopped = replace(_failed(failure), then="stopped", outcome=outcome, checkpoint_step=count.step)
        write_event(job.folder.events, stopped)
        return
    if failure.rollback:
        # Its ranks have told of it.
        return
    allowed = job.recipe.cluster.max_failures
    decision = decide(failure, failures=count.failures, max_failures=allowed)
    if isinstance(decision, GiveUp):
        write_event(job.folder.events, _failed(failure))
        message = failure.describe()
        # A cause with its own advice how to continue, such as a divergence, is more specific.
        resume = f"; `shardyard resume {typed(job.folder.path)}` continues from the newest checkpoint"
        raise GaveUpError(
            f"training failed, and {decision.reason}:\n{message}\n"
            f"Logs of all ranks are in {job.folder.path / 'logs'}{'' if '`shardyard resume ' in message else resume}.",
            failure,
        )
    write_event(
        job.folder.events,
        replace(
            _failed(failure),
            then="retry",
            wait_seconds=decision.wait_seconds,
            failures=count.failures,
            max_failures=allowed,
            checkpoint_step=count.step,
        ),
    )
    until = time.monotonic() + decision.wait_seconds
    while time.monotonic() < until and _stopped(job) is None:
        time.sleep(min(STOP_POLL_SECONDS, decision.wait_seconds))


def _failed(failure: Failure) -> AttemptFailed:
    """The event of a failure that ended the run."""
    ranks = sorted(rank for group in failure.causes.values() for rank in group)
    causes: list[Cause] = [{"message": message, "ranks": group} for message, group in failure.causes.items()]
    return AttemptFailed(causes=causes, ranks=tuple(ranks))
