"""The process that drives a run, and whether it is alive: by pid and start time on its own host, by its lease
elsewhere.

A lease is a small file in the run folder that its holder rewrites every few seconds. An observer on another host
measures the time between changes with its own clock, because clocks of hosts and file servers may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from functools import cache
from pathlib import Path
from typing import Required, cast

from shardyard.tracking.run.info import ProcessInfo, RunInfo

LEASE_NAME = "lease.json"
BEAT_SECONDS = 5.0
# A holder without a change for this long is gone: several heartbeats plus the delay of network caches.
EXPIRY_SECONDS = 30.0
# A single check has only the file's time stamp, and clocks may differ by minutes.
LOOKED_ONCE_SECONDS = 600.0
_MOST_BYTES = 4096

# Path of a lease → its newest beat, and when this process first saw it, by its own clock.
_seen: dict[str, tuple[tuple[str, int], float]] = {}


class LeaseInfo(ProcessInfo):
    """The file of a lease. token: of its holder, new for each lease. beat: number of renewals. renewed: ISO 8601."""

    token: Required[str]
    beat: Required[int]
    released: bool
    renewed: str


def this_process() -> ProcessInfo:
    """An identification of this process that is unique across hosts and time."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_namespace": _pid_namespace(),
        "boot_id": _boot_id(),
        "process_start": process_start(os.getpid()),
    }


def sees(driver: ProcessInfo) -> bool:
    """Whether a driver's pid in run.json is meaningful to this process: a container or job may have a separate pid
    namespace, and another machine the same name."""
    ours = driver.get("host") == socket.gethostname() and driver.get("boot_id", _boot_id()) == _boot_id()
    return ours and driver.get("pid_namespace", _pid_namespace()) == _pid_namespace()


def same_kernel(driver: ProcessInfo) -> bool:
    """Whether a process runs on this machine, possibly in a container; file locks are then reliable."""
    return bool(driver.get("boot_id")) and driver.get("boot_id") == _boot_id()


def lives(driver: ProcessInfo) -> bool | None:
    """Whether this process is alive; None if it is not visible here. Pids are reused, start times are not."""
    pid = driver.get("pid")
    if not isinstance(pid, int) or pid <= 0 or not sees(driver):
        return None
    start = process_start(pid)
    if start is None:
        # Unknown without /proc.
        return False if process_start(os.getpid()) is not None else None
    return driver.get("process_start") in (None, start)


def process_start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None for a process that has ended or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name, in parentheses, may contain any character. Source: proc(5), fields 3 and 22.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def read_lease(folder: Path) -> LeaseInfo | None:
    """The lease of a run folder; None if it does not exist or is just being written."""
    try:
        descriptor = os.open(folder / LEASE_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return parse_lease(os.read(descriptor, _MOST_BYTES))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def parse_lease(data: bytes) -> LeaseInfo | None:
    """The lease in the bytes of its file."""
    with contextlib.suppress(ValueError):
        lease = json.loads(data)
        if isinstance(lease, dict) and isinstance(lease.get("token"), str) and isinstance(lease.get("beat"), int):
            return cast("LeaseInfo", lease)
    return None


def is_gone(info: RunInfo, folder: Path) -> bool:
    """Whether a pending or running run has lost its process.

    A process on another host counts as gone if its lease was not renewed for `EXPIRY_SECONDS` while this process
    observed it, or for `LOOKED_ONCE_SECONDS` by the file's time stamp. Runs without a lease count as alive.
    """
    if info.state not in ("pending", "running") or not info.driver:
        return False
    alive = lives(info.driver)
    if alive is not None:
        return not alive
    lease = read_lease(folder)
    return lease is not None and not lease.get("released") and _is_expired(folder / LEASE_NAME, lease)


def _is_expired(path: Path, lease: LeaseInfo) -> bool:
    beat, now = (lease["token"], lease["beat"]), time.monotonic()
    known, since = _seen.get(str(path), (None, now))
    if known != beat:
        since = now
    _seen[str(path)] = (beat, since)
    if now - since >= EXPIRY_SECONDS:
        return True
    try:
        return time.time() - path.stat().st_mtime > LOOKED_ONCE_SECONDS
    except OSError:
        return False


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
