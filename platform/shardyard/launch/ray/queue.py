"""The queue of a Ray cluster: workers of its jobs are placed in the order of submission.

Ray starts the driver of each job at once. A job therefore takes a queue slot, a locked file on the disk of the head,
where drivers run. It is first in the queue when no earlier slot is locked, and releases its slot once its workers are
placed. The kernel releases the locks of dead processes, so the queue never gets stuck.

Imports only the standard library, because dozens of jobs may wait at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# `<descriptor>:<path>` of the slot that a job holds for its driver.
SLOT_VARIABLE = "SHARDYARD_QUEUE_SLOT"
POLL_SECONDS = 0.5


class QueueSlot:
    """A locked file, named after the time of submission and the job.

    The driver inherits the descriptor, and with it the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> QueueSlot:
        """A locked slot; it is never visible unlocked.

        Raises:
            OSError: the folder of slots is not writable.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.parent / f".{secrets.token_hex(8)}"
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside.rename(path)
        return cls(path, descriptor)

    def ahead(self) -> int:
        """The number of earlier slots with living owners; removes the others."""
        earlier = [path for path in _slots(self.path.parent) if path.name < self.path.name]
        return sum(_is_held(path) for path in earlier)

    def give_back(self) -> None:
        """Release the slot for the next job. May be called twice."""
        if self.descriptor < 0:
            return
        self.path.unlink(missing_ok=True)
        # The lock belongs to all processes that inherited the descriptor; closing it here would not free it.
        with contextlib.suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            os.close(self.descriptor)
        self.descriptor = -1

    def to_variable(self) -> dict[str, str]:
        """The environment variable that tells a driver its inherited slot."""
        return {SLOT_VARIABLE: f"{self.descriptor}:{self.path}"}


def queue_folder(address: str | None = None) -> Path:
    """The folder of a cluster's queue slots, on the local disk of this host: one per user and cluster.

    Args:
        address: of the cluster; RAY_ADDRESS by default.
    """
    cluster = address or os.environ.get("RAY_ADDRESS") or "local"
    name = hashlib.sha256(cluster.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"shardyard-queue-{os.getuid()}-{name}"


def slot_path(folder: Path, submitted: float, job: str) -> Path:
    """The path of a slot. Slots sort by name: by submission time in seconds since 1970, then by job id."""
    return folder / f"{int(submitted * 1000):015d}-{job}"


def wait_for_slot(
    slot: QueueSlot, stopped: Callable[[], bool] = lambda: False, report: Callable[[int], None] = lambda ahead: None
) -> bool:
    """Wait until no earlier slot is held; False if `stopped()` became true first. `report` gets the number of jobs
    ahead whenever it changes."""
    reported = None
    while count := slot.ahead():
        if stopped():
            return False
        if count != reported:
            report(count)
            reported = count
        time.sleep(POLL_SECONDS)
    return not stopped()


_held: QueueSlot | None = None


def hold_slot(stopped: Callable[[], bool] = lambda: False, report: Callable[[int], None] = lambda ahead: None) -> bool:
    """In the driver: wait until this job is first in the queue; it stays first until `placed()`.

    Returns immediately for a run that is not a job, and for the first attempt, which starts only when its job is first.
    A later attempt takes the job's original position again.

    Returns:
        False if `stopped()` became true first.
    """
    global _held
    if _held is None or _held.descriptor < 0:
        _held = _from_environment() if _held is None else _again(_held)
    return _held is None or wait_for_slot(_held, stopped, report)


def placed() -> None:
    """In the driver: the workers are placed, so release the slot. Does nothing for a run that is not a job."""
    if _held is not None:
        _held.give_back()


def _from_environment() -> QueueSlot | None:
    descriptor, _, path = os.environ.get(SLOT_VARIABLE, "").partition(":")
    if not path:
        return None
    # Ranks started by this process must not keep the lock.
    os.set_inheritable(int(descriptor), False)
    return QueueSlot(Path(path), int(descriptor))


def _again(slot: QueueSlot) -> QueueSlot | None:
    try:
        return QueueSlot.take(slot.path)
    except OSError:
        return None


def _slots(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [folder / name for name in os.listdir(folder) if not name.startswith(".")]
    return []


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that processes that check at the same time do not mistake each other for the owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
