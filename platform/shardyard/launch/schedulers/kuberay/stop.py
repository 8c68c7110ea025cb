"""The preStop hook of a pod: request a last checkpoint of the run, and wait for it.

    python -m shardyard.launch.schedulers.kuberay.stop RUN_FOLDER SECONDS [--driver]

A worker pod requests a stop through the run folder: the run ends, and its driver continues it if the recipe says so
(`job.on_preempted`). The driver's pod signals the driver itself. Several pods may request a stop at once; there is no
wait for a run that has ended or not yet begun.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from shardyard.errors import RunFolderError
from shardyard.tracking.run.folder import RunFolder

POLL_SECONDS = 0.5
# Identifies the driver's command line.
DRIVER = "shardyard.launch.schedulers.kuberay.entry"


def stop_run(path: Path, seconds: float) -> bool:
    """Stop the run in `path` with a checkpoint; returns whether it ended within `seconds`."""
    folder = RunFolder(path)
    if not _running(folder):
        return True
    if folder.stop_requested() is None:
        folder.request_stop("preempt")
    # A run that continues elsewhere clears the request.
    return _within(seconds, lambda: not _running(folder) or folder.stop_requested() is None)


def stop_driver(seconds: float) -> bool:
    """Signal the driver in this pod; returns whether it ended within `seconds`."""
    drivers = [process for process in psutil.process_iter(["cmdline"]) if DRIVER in (process.info["cmdline"] or [])]
    for process in drivers:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    return _within(seconds, lambda: all(map(_gone, drivers)))


def _gone(process: psutil.Process) -> bool:
    """Whether it has ended; it may be a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _within(seconds: float, over: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not over():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _running(folder: RunFolder) -> bool:
    try:
        return folder.state == "running"
    except RunFolderError:  # the folder does not exist yet, or no longer
        return False


def main(arguments: list[str]) -> int:
    """Run the hook; exit code 0: the run is over; 1: time is up."""
    path, seconds, *driver = arguments
    over = stop_driver(float(seconds)) if driver == ["--driver"] else stop_run(Path(path), float(seconds))
    return 0 if over else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
