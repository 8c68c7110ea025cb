"""Identifying the processes of the cluster that were started on this machine, and stopping them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

import psutil

from shardyard.launch.local_cluster.nodes import ClusterRecord, StartedNode
from shardyard.launch.local_cluster.plan import CLUSTER_ID

POLITE_SECONDS = 10.0
FORCE_SECONDS = 10.0
# psutil rounds the start time of a process to clock ticks.
CREATED_TOLERANCE_SECONDS = 1.0


def is_alive(node: StartedNode) -> bool:
    """Whether a node's `ray start` process still runs; it ends as soon as one of the node's daemons dies."""
    return _leader(node) is not None


def members(record: ClusterRecord) -> list[psutil.Process]:
    """All processes of the cluster on this machine, including those whose parents were killed.

    They are identified by their inherited environment. Ray's workers overwrite it with their titles, so they are
    identified by their node's session and the title.
    """
    sessions = {node.pid for node in record.nodes}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if _belongs(process, record, sessions):
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    return [process for process in found.values() if process.pid != os.getpid() and _runs(process)]


def end(record: ClusterRecord) -> list[int]:
    """Stop all processes of the cluster, with SIGTERM first; returns the ids of those that could not be stopped."""
    leaders = [process for node in record.nodes if (process := _leader(node)) is not None]
    for process in leaders:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _wait_for(leaders, POLITE_SECONDS)
    deadline = time.monotonic() + FORCE_SECONDS
    # Repeated, because a process may start children in the meantime.
    while (left := members(record)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _wait_for(left, 1.0)
    return [process.pid for process in left]


def _leader(node: StartedNode) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(node.pid)
        if abs(process.create_time() - node.created) < CREATED_TOLERANCE_SECONDS and _runs(process):
            return process
    return None


def _belongs(process: psutil.Process, record: ClusterRecord, sessions: set[int]) -> bool:
    if _environment(process).get(CLUSTER_ID) == record.id:
        return True
    if os.getsid(process.pid) not in sessions or process.create_time() < record.started - CREATED_TOLERANCE_SECONDS:
        return False
    # Session numbers may be reused; only Ray's workers hide their environment.
    return str(process.name()).startswith("ray::")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        environment: dict[str, str] = process.environ()
    except (psutil.Error, OSError):
        return {}
    return environment


def _runs(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie has ended, but its parent has not reaped it yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _wait_for(processes: Iterable[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
