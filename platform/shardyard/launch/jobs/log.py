"""What the log of a Ray job tells its entry point: when the job was submitted, and which jobs before it still start.

Ray starts drivers at once, and whichever process is up first would be first in the queue. But the server opens the log
of a job when it takes the job, on the disk where drivers run, and dates its first line; that is the order which counts.
Under other schedulers there is no such log, and the time of the submitting host serves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from shardyard.launch.jobs.spec import JobSpec

# An earlier job that has not started by then, for instance because its environment is still installed, is not waited
# for any longer.
STARTING_SECONDS = 30.0
POLL_SECONDS = 0.1
# The line by which an entry point says that it has its place in the queue.
IN_QUEUE = "run folder "
_PREFIX, _SUFFIX = "job-driver-", ".log"
_STARTED = "Running entrypoint for job "
_HEAD_BYTES = 8192


def own_log() -> Path | None:
    """The file that Ray writes the output of this job to; None under another scheduler."""
    try:
        path = Path(os.readlink("/proc/self/fd/1"))
    except OSError:
        return None
    return path if path.name.startswith(_PREFIX) and path.suffix == _SUFFIX else None


def submitted_at(spec: JobSpec, log: Path | None = None) -> float:
    """When the server took the job, in seconds since 1970."""
    log = log or own_log()
    taken = first_time(_head(log)) if log is not None else None
    return float(spec["submitted"]) if taken is None else taken


def wait_for_earlier_starts(
    submitted: float, stopped: Callable[[], bool] = lambda: False, log: Path | None = None
) -> None:
    """Wait until each job submitted before has its place in the queue, is not a job of Shardyard, or is late."""
    log = log or own_log()
    while log is not None and not stopped() and _starting_before(submitted, log):
        time.sleep(POLL_SECONDS)


def first_time(text: str) -> float | None:
    """Time at the beginning of a log, such as `2026-11-22 16:37:35,123`, in seconds since 1970."""
    try:
        return datetime.strptime(text[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    except ValueError:
        return None


def is_starting(text: str) -> bool:
    """Whether the job of a log may still take a place in the queue."""
    _, started, rest = text.partition(_STARTED)
    if not started:
        return True
    return "shardyard.launch.jobs.entry" in rest.partition("\n")[0] and f"\n{IN_QUEUE}" not in rest


def _starting_before(submitted: float, own: Path) -> bool:
    now = time.time()
    for entry in os.scandir(own.parent):
        if not entry.name.startswith(_PREFIX) or entry.name == own.name:
            continue
        try:
            if now - entry.stat().st_mtime > STARTING_SECONDS:
                continue
            text = _head(Path(entry.path))
        except OSError:
            continue
        taken = first_time(text)
        earlier = taken is not None and (taken, entry.name) < (submitted, own.name) and now - taken < STARTING_SECONDS
        if earlier and is_starting(text):
            return True
    return False


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8", errors="replace")
