"""The order of the jobs of a Ray cluster: the submission times of jobs, and the jobs that come first.

Ray starts drivers at once, and whichever process is up first would be first in the queue. So the submitter asks Ray's
Jobs API for the jobs that have not ended, dates the new one after them, whatever the clocks of two hosts say, and
passes their ids to it. The entry point lets these join the queue first. A job that has joined holds a locked record
beside the queue slots as long as it lives. Only the standard library is imported.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# An earlier job that has not joined by then, for instance because its environment is still installed, or because it
# could not be started at all, is not waited for any longer.
STARTING_SECONDS = 30.0
POLL_SECONDS = 0.1
# Records of jobs that have ended are of use to jobs that were submitted while they still ran.
KEPT_SECONDS = 24 * 3600.0
# Two jobs never count as submitted at the same time; queue slots are named by milliseconds.
_APART_SECONDS = 0.002
_RECORDS = ".joined"


@dataclass(frozen=True)
class Position:
    """submitted: seconds since 1970, by which the queue sorts. after: ids of the jobs that come before."""

    submitted: float
    after: tuple[str, ...] = ()


def position_after(jobs: Mapping[str, float], now: float | None = None) -> Position:
    """The position of a job that is submitted now.

    Args:
        jobs: when each job counts as submitted that has not ended, by id.
        now: seconds since 1970, by the clock of this host.
    """
    moment = time.time() if now is None else now
    return Position(max([moment, *(submitted + _APART_SECONDS for submitted in jobs.values())]), tuple(jobs))


def join(queue: Path, job: str) -> None:
    """Leave a record that this job has a place in the queue. This process keeps it locked for as long as it lives, and
    those that it starts do not inherit it.

    Raises:
        OSError: the folder of the queue cannot be written.
    """
    folder = queue / _RECORDS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_old(folder)
    descriptor = os.open(folder / job, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.utime(descriptor)


def wait_for_earlier(queue: Path, after: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> None:
    """Wait until each of these jobs has joined the queue, or is late."""
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
