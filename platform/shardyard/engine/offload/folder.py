"""The folder of a rank for what it offloads to a disk: used by one process, and removed after it.

    <nvme_path>/
      .shardyard.lock          held while folders are made and removed
      shardyard-<random>/      one for each rank; its file `lock` is locked while the rank lives

The kernel releases the lock of a process that ends, however it ends, so a folder that nobody locks is left over.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shardyard.errors import HardwareError
from shardyard.units import format_bytes

_PREFIX = "shardyard-"
_LOCK = "lock"
_ALIGNMENT_BYTES = 4096


class SwapFolder:
    """A folder of this process's own, locked until `close` or until the process ends."""

    def __init__(self, base: Path) -> None:
        """Make the folder, and remove those of processes that have ended.

        Raises:
            HardwareError: the folder cannot be made or written, or its file system has no direct access.
        """
        try:
            base.mkdir(parents=True, exist_ok=True)
            with _alone(base):
                self.removed = _remove_left(base)
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
                self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HardwareError(
                f"zero.nvme_path {base} cannot be used: {error.strerror or error}; choose a folder on a local disk "
                "that this user may write"
            ) from error
        self._open = True
        atexit.register(self.close)
        if not _has_direct_access(self.path):
            self.close()
            raise HardwareError(
                f"zero.nvme_path {base}: its file system has no direct access (O_DIRECT), as in memory (tmpfs) or in "
                "some containers; choose a folder on a local disk, or set zero.offload_optimizer to cpu"
            )

    def require(self, size_bytes: int, ranks: int) -> None:
        """Check that there is space for the files of this host's ranks, each of which needs `size_bytes`.

        Raises:
            HardwareError: there is less.
        """
        free = shutil.disk_usage(self.path).free
        if free < ranks * size_bytes:
            each = f"{ranks} × {format_bytes(size_bytes)}" if ranks > 1 else format_bytes(size_bytes)
            raise HardwareError(
                f"zero.nvme_path {self.path.parent} needs {each} for optimizer states and gradients and has "
                f"{format_bytes(free)} free; free some space, choose another disk, or use more ranks"
            )

    def close(self) -> None:
        """Remove the folder."""
        if self._open:
            self._open = False
            atexit.unregister(self.close)
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)


@contextlib.contextmanager
def _alone(base: Path) -> Iterator[None]:
    held = os.open(base / ".shardyard.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _remove_left(base: Path) -> list[Path]:
    """Remove the folders whose processes have ended."""
    removed = []
    for folder in base.glob(f"{_PREFIX}*"):
        if folder.is_symlink() or not folder.is_dir() or _is_held(folder / _LOCK):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _is_held(lock: Path) -> bool:
    try:
        file = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:  # of another user
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _has_direct_access(folder: Path) -> bool:
    probe = folder / "probe"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True
