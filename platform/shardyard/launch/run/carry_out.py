"""Training a run in its folder, within a process that may also do other work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import psutil

from shardyard.engine.job import Job
from shardyard.imports import import_at_once
from shardyard.launch.run.driver import drive, locally, on_ray
from shardyard.launch.run.end_children import children, end_children
from shardyard.launch.run.follow import Observer, following
from shardyard.launch.run.plans import PlannedRun, report_findings
from shardyard.launch.run.stop import Stop
from shardyard.launch.run.threads import on_a_thread
from shardyard.planning.plan import fixed
from shardyard.tracking.run.code import keep_code, report_changed_code
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.lease import Lease

if TYPE_CHECKING:
    from shardyard.engine.loop import Outcome


def carry_out(
    run: PlannedRun,
    folder: RunFolder,
    lease: Lease,
    *,
    stop: Stop,
    observer: Observer | None = None,
    until: int | None = None,
    trust: bool = False,
    keep_group: bool = False,
    while_waiting: Callable[[], None] = lambda: None,
    tells: int | None = None,
) -> Outcome:
    """Train in a run folder to the end; returns the outcome.

    A local rank trains on the calling thread. Ray's workers are driven from another thread while this one waits.

    Args:
        lease: of the folder, held during the call.
        stop: a request ends the run with a checkpoint. Ctrl-C without a handler also requests a stop.
        observer: receives records and events, on a separate thread.
        until: pause after this step, with a checkpoint.
        trust: load checkpoint files that may execute code.
        keep_group: as in `run_local`, for processes that train several runs.
        while_waiting: called periodically on this thread while Ray's workers train.
        tells: as in `run_local`, for processes that do nothing else.

    Raises:
        ShardyardError: the run failed.
        TakenOverError: another process has taken over the run.
        KeyboardInterrupt: a second Ctrl-C; all training processes have been killed.
    """
    before = children()
    folder.update(local=run.local, total_steps=run.plan.steps, world_size=run.plan.world.size)
    stop.bind(folder)
    recipe = keep_code(fixed(run.loaded.recipe, run.plan), folder)
    report_changed_code(recipe, folder)
    report_findings(run.plan, folder)
    job = Job(recipe, run.plan, folder, until, trust, run.measure)

    def wait() -> None:
        while_waiting()
        if lease.lost.is_set():
            _leave(folder, before)

    with following(folder, observer):
        if run.local:
            import_at_once("shardyard.launch.run.local")
            return drive(job, partial(locally, keep_group=keep_group, tells=tells))
        return on_a_thread(lambda: drive(job, on_ray), "shardyard-driver", wait, _on_interrupt(stop, before))


def _on_interrupt(stop: Stop, before: Iterable[psutil.Process]) -> Callable[[], None]:
    """The handler of Ctrl-C: the first requests a stop with a checkpoint, a second one ends immediately."""

    def interrupted() -> None:
        if stop.reason is not None:
            end_children(spare=before)
            raise KeyboardInterrupt
        stop.request("interrupt")

    return interrupted


def _leave(folder: RunFolder, before: Iterable[psutil.Process]) -> None:
    """The run was taken over: kill its processes here, which would keep writing.

    Raises:
        TakenOverError: always.
    """
    end_children(spare=before)
    folder.check_held()
