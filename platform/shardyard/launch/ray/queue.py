"""Whose turn it is: jobs of one Ray cluster have their workers placed in the order in which they were submitted.

Ray starts the driver of each job at once. A job therefore takes a ticket on the disk of the head, where drivers run,
and locks it as long as it lives; it is its turn when no earlier ticket is locked. Once its workers are placed it gives
the ticket back. The kernel frees the lock of a process that dies in whatever way, so nothing is ever stuck.

Only the standard library is imported: dozens of jobs may wait at once.
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

# `<descriptor>:<path>` of the ticket that a job holds for the driver that it starts.
TICKET_VARIABLE = "SHARDYARD_TICKET"
POLL_SECONDS = 0.5


class QueueSlot:
    """A locked file, called after the time of submission and the job.

    The driver inherits the descriptor, and with it the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> QueueSlot:
        """A locked ticket; nobody ever sees it unlocked.

        Raises:
            OSError: the folder of tickets cannot be written.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.parent / f".{secrets.token_hex(8)}"
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        aside.rename(path)
        return cls(path, descriptor)

    def ahead(self) -> int:
        """Earlier tickets whose owners live; those of the dead are removed."""
        earlier = [path for path in _tickets(self.path.parent) if path.name < self.path.name]
        return sum(_is_held(path) for path in earlier)

    def give_back(self) -> None:
        """Let the next one go; giving back twice is harmless."""
        if self.descriptor < 0:
            return
        self.path.unlink(missing_ok=True)
        # The lock belongs to all processes that inherited the descriptor; closing it here would not free it.
        with contextlib.suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
            os.close(self.descriptor)
        self.descriptor = -1

    def to_variable(self) -> dict[str, str]:
        """What tells a driver that inherits the descriptor of the ticket."""
        return {TICKET_VARIABLE: f"{self.descriptor}:{self.path}"}


def queue_folder(address: str | None = None) -> Path:
    """Where the tickets of a cluster lie, on the local disk of this host: one folder a user and cluster.

    Args:
        address: of the cluster; RAY_ADDRESS by default.
    """
    cluster = address or os.environ.get("RAY_ADDRESS") or "local"
    name = hashlib.sha256(cluster.encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"shardyard-queue-{os.getuid()}-{name}"


def ticket_path(folder: Path, submitted: float, job: str) -> Path:
    """Tickets sort by name: by the time of submission in seconds since 1970, then by the id of the job."""
    return folder / f"{int(submitted * 1000):015d}-{job}"


def wait_for_turn(
    ticket: QueueSlot, stopped: Callable[[], bool] = lambda: False, say: Callable[[str], None] = lambda line: None
) -> bool:
    """Wait until no earlier ticket is held; False where `stopped()` became true before. `say` hears changes."""
    told = None
    while count := ticket.ahead():
        if stopped():
            return False
        if count != told:
            say(waiting_line(count))
            told = count
        time.sleep(POLL_SECONDS)
    return not stopped()


def waiting_line(ahead: int) -> str:
    """What a job says while others are ahead of it."""
    return f"waiting: {ahead} job{'s' if ahead != 1 else ''} submitted before it {'are' if ahead != 1 else 'is'} ahead"


_held: QueueSlot | None = None


def hold_turn(stopped: Callable[[], bool] = lambda: False, say: Callable[[str], None] = lambda line: None) -> bool:
    """Driver: wait until it is the turn of this job to have its workers placed; it lasts until `placed()`.

    Returns at once for a run that is not a job, and for the first attempt, whose turn it is when it is started. A later
    attempt has the place in the order that the job always had.

    Returns:
        False where `stopped()` became true before.
    """
    global _held
    if _held is None or _held.descriptor < 0:
        _held = _from_environment() if _held is None else _again(_held)
    return _held is None or wait_for_turn(_held, stopped, say)


def placed() -> None:
    """Driver: the workers have what they need, so the next job may go. Harmless for a run that is not a job."""
    if _held is not None:
        _held.give_back()


def _from_environment() -> QueueSlot | None:
    descriptor, _, path = os.environ.get(TICKET_VARIABLE, "").partition(":")
    if not path:
        return None
    # The ranks that this process may start must not keep the lock alive.
    os.set_inheritable(int(descriptor), False)
    return QueueSlot(Path(path), int(descriptor))


def _again(ticket: QueueSlot) -> QueueSlot | None:
    try:
        return QueueSlot.take(ticket.path)
    except OSError:
        return None


def _tickets(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [folder / name for name in os.listdir(folder) if not name.startswith(".")]
    return []


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that several who look at once do not take one another for the owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
