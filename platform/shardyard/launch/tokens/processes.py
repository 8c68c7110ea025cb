"""Tasks carried out by processes of this machine, which end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for

from shardyard.data.tokenized.making import Work, run_task
from shardyard.data.tokenized.writing import Task
from shardyard.errors import DataError, ShardyardError

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Call:
    """A task of a set."""

    work: Work
    task: Task


def attempt(call: Call) -> str | None:
    """Carry out a task; returns what went wrong, in words: exceptions do not survive every way between processes."""
    try:
        run_task(call.work, call.task)
    except ShardyardError as error:
        return str(error)
    return None


def on_processes(calls: Sequence[Call], workers: int) -> Iterator[str | None]:
    """Carry out tasks; yields every second and after each task, with what went wrong if something did.

    Raises:
        DataError: a process was killed.
    """
    if workers == 1:
        yield from map(attempt, calls)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _follow_parent)
    try:
        pending = {pool.submit(attempt, call) for call in calls}
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            yield from (future.result() for future in done)
            if not done:
                yield None
    except BrokenProcessPool as error:
        raise DataError(
            "a process was killed, perhaps for want of memory. The finished shards are kept: call the same command "
            "again, with fewer --workers."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


def _follow_parent() -> None:
    """Leave Ctrl+C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a child"
    sentinel = parent.sentinel

    def follow() -> None:
        wait_for([sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="shardyard-parent", daemon=True).start()
