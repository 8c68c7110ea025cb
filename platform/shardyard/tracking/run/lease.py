"""The lease of a run: only one process at a time trains it. The lease ends with its process, also on shared storage.

The holder locks the file and rewrites it in place every few seconds, which works even on a full disk. A process that
wants the run checks, in this order, the holder's process if it is visible, the lock, and whether the file changes.
Taking over replaces the file; the former holder then finds another token. A released lease remains as a file marked
released, so that a holder that was suspended still notices.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Callable

from shardyard.errors import TakenOverError, UsageError
from shardyard.tracking.run import holder
from shardyard.tracking.run.folder import RunFolder, locked, now_text, typed, unwritable
from shardyard.tracking.run.holder import LEASE_NAME, LeaseInfo, lives, read_lease, same_kernel, this_process
from shardyard.tracking.run.info import ProcessInfo

POLL_SECONDS = 1.0
# On disks without locks, two processes may take it at the same time: the one whose file remains holds it.
SETTLE_SECONDS = 1.0
# Records are padded to this length, so that a shorter one overwrites a longer one completely.
_BYTES = 1024


class Lease:
    """A lease, held from `take` to the end of the `with` block. `lost` is set once another process has taken it."""

    def __init__(self, folder: RunFolder, token: str, descriptor: int) -> None:
        self.folder = folder
        self.token = token
        self.lost = threading.Event()
        self._descriptor = descriptor
        self._beat = 0
        self._pid = os.getpid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="shardyard-lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @classmethod
    def take(
        cls, folder: RunFolder, *, take_over: bool = False, report: Callable[[str], None] = lambda text: None
    ) -> Lease:
        """Take the lease of a free run, or with `take_over` of any run. `report` is called with the reason for a wait.

        Raises:
            UsageError: another process holds it.
            RunFolderError: the folder cannot be written.
        """
        while True:
            seen = read_lease(folder.path)
            if not take_over:
                _refuse_held(folder, seen, report)
            token = secrets.token_hex(8)
            try:
                with locked(folder.path):
                    if not take_over and _beat_of(read_lease(folder.path)) != _beat_of(seen):
                        continue
                    lease = cls(folder, token, _put(folder, token))
            except OSError as error:
                raise unwritable(folder.path, error) from error
            if not _lock(lease._descriptor):
                time.sleep(SETTLE_SECONDS)
            if (there := read_lease(folder.path)) is not None and there["token"] != token:
                take_over = False
                continue
            folder.token = token
            return lease

    def release(self) -> None:
        """Release the lease, unless another process has taken it. May be called twice."""
        if self._over.is_set() or os.getpid() != self._pid:
            return
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if not self.lost.is_set():
            # Of a lost run the folder keeps the token: a thread that is left behind must write nothing either.
            self.folder.token = None
        with contextlib.suppress(OSError):
            self._write(released=True)
        os.close(self._descriptor)

    def _renew(self) -> None:
        while not self._over.wait(holder.BEAT_SECONDS):
            try:
                self.folder.check_held()
            except TakenOverError:
                self.lost.set()
                return
            # The disk is full or temporarily unavailable: observers see no change, so retry.
            with contextlib.suppress(OSError):
                self._write()

    def _write(self, *, released: bool = False) -> None:
        self._beat += 1
        os.pwrite(self._descriptor, _record(self.token, self._beat, released=released), 0)
        os.fdatasync(self._descriptor)


def _put(folder: RunFolder, token: str) -> int:
    """Replace the lease file with a new locked file; returns its descriptor."""
    aside = folder.path / f".{LEASE_NAME}.{token}"
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, _record(token, 0))
        os.fdatasync(descriptor)
        _lock(descriptor)
        aside.replace(folder.path / LEASE_NAME)
    except BaseException:
        os.close(descriptor)
        aside.unlink(missing_ok=True)
        raise
    return descriptor


def _record(token: str, beat: int, *, released: bool = False) -> bytes:
    fields = {"token": token, "beat": beat, "released": released, "renewed": now_text(), **this_process()}
    return json.dumps(fields, ensure_ascii=False).encode().ljust(_BYTES - 1) + b"\n"


def _lock(descriptor: int) -> bool:
    """Lock a new file, which no other process can have locked; False if the disk does not support locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _refuse_held(folder: RunFolder, lease: LeaseInfo | None, report: Callable[[str], None]) -> None:
    """Check that no process holds the run.

    Raises:
        UsageError: a process holds it, or may hold it.
    """
    if lease is None:
        _refuse_without_lease(folder)
        return
    alive = False if lease.get("released") else lives(lease)
    if alive is None and _is_locked(folder):
        alive = True
    if alive is None and same_kernel(lease):
        alive = False
    if alive is None:
        report(
            f"Process {lease.get('pid')} on {lease.get('host')} may still be training {folder.id}: watching its lease "
            f"for {holder.EXPIRY_SECONDS:g} s."
        )
        alive = _changes(folder, lease)
    if alive:
        raise _held_by(folder, lease)


def _refuse_without_lease(folder: RunFolder) -> None:
    """The same check for a run from before leases existed."""
    info = folder.info()
    driver = info.driver
    if info.state != "running" or not driver or lives(driver) is False or driver.get("pid") == os.getpid():
        return
    raise _held_by(folder, driver)


def _held_by(folder: RunFolder, who: ProcessInfo) -> UsageError:
    name = typed(folder.path)
    return UsageError(
        f"{folder.id} is being trained by process {who.get('pid')} on {who.get('host')}; `shardyard stop {name}` stops "
        f"it with a checkpoint. If that process is stuck, `shardyard resume {name} --take-over` takes over the run."
    )


def _changes(folder: RunFolder, lease: LeaseInfo) -> bool:
    """Whether the file changes while this process observes it."""
    began = time.monotonic()
    while time.monotonic() - began < holder.EXPIRY_SECONDS:
        time.sleep(min(POLL_SECONDS, holder.EXPIRY_SECONDS / 10))
        now = read_lease(folder.path)
        if now is not None and _beat_of(now) != _beat_of(lease):
            return not now.get("released")
    return False


def _is_locked(folder: RunFolder) -> bool:
    """Whether a process holds the lock, as far as the disk supports locks."""
    try:
        descriptor = os.open(folder.path / LEASE_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _beat_of(lease: LeaseInfo | None) -> tuple[str, int] | None:
    return (lease["token"], lease["beat"]) if lease is not None else None
