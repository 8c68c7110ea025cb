"""The order of the jobs of a Ray cluster: submission times, and the jobs that come before a new one.

Ray starts drivers at once, so the fastest process would be first in the queue. The submitter therefore gets the unended
jobs from Ray's Jobs API, gives the new job a later time even if the clocks of two hosts differ, and passes their ids to
it. The entry point lets these jobs join the queue first. A job that has joined holds a locked record beside the queue
slots until it ends. Imports only the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# The time limit for earlier jobs to join. One may never join, for example because its environment is still being
# installed or it failed to start.
STARTING_SECONDS = 30.0
POLL_SECONDS = 0.1
# Records of ended jobs are needed by jobs that were submitted before they ended.
KEPT_SECONDS = 24 * 3600.0
# The minimum difference of two submission times; queue slots are named by milliseconds.
_APART_SECONDS = 0.002
_RECORDS = ".joined"


@dataclass(frozen=True)
class Position:
    """A position in the queue. submitted: seconds since 1970, the sort key. after: ids of the jobs before it."""

    submitted: float
    after: tuple[str, ...] = ()


def position_after(jobs: Mapping[str, float], now: float | None = None) -> Position:
    """The position of a job submitted now.

    Args:
        jobs: submission times of the unended jobs, by id.
        now: seconds since 1970, by the clock of this host.
    """
    moment = time.time() if now is None else now
    return Position(max([moment, *(submitted + _APART_SECONDS for submitted in jobs.values())]), tuple(jobs))


def join(queue: Path, job: str) -> None:
    """Write a record that this job has joined the queue. This process keeps it locked until it ends; children do not
    inherit the lock.

    Raises:
        OSError: the queue folder is not writable.
    """
    folder = queue / _RECORDS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_old(folder)
    descriptor = os.open(folder / job, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.utime(descriptor)


def wait_for_earlier(queue: Path, after: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> None:
    """Wait until each of these jobs has joined the queue, or the time limit is over."""
    deadline = time.monotonic() + STARTING_SECONDS
    while not stopped() and time.monotonic() < deadline:
        if all((queue / _RECORDS / job).exists() for job in after):
            return
        time.sleep(POLL_SECONDS)


def _remove_old(folder: Path) -> None:
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > KEPT_SECONDS and not _is_locked(Path(entry.path)):
                os.unlink(entry.path)


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
