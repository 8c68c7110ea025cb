"""Locks of torch's compilation folders: taking them, and detecting and removing stale ones.

torch takes a lock by creating the file `lock` and releases it by removing the file. A process that is killed in between
leaves the lock forever, and every later process waits silently. Imports only the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOCK_NAME = "lock"
# Content of the locks that our own processes hold with flock(2), which the kernel releases when a process ends.
_OURS = b"shardyard\n"
# Compiling an operation of DeepSpeed takes a minute or two.
LONGEST_BUILD_SECONDS = 1800.0
# File systems of a single container (_PRIVATE) or a single machine (_LOCAL); on others, any host may hold a lock.
_PRIVATE = frozenset({"overlay", "tmpfs", "ramfs"})
_LOCAL = _PRIVATE | {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"}
# The PID namespace that contains all processes of a machine (PROC_PID_INIT_INO of Linux); containers have others.
_ALL_PROCESSES = "pid:[4026531836]"


@dataclass(frozen=True)
class LockState:
    """The holder of a lock.

    stale: certainly no process holds it. pid: the process that holds it, if visible. why: why neither is known.
    """

    stale: bool = False
    pid: int | None = None
    why: str = ""


def root() -> Path:
    """The folder in which torch compiles operations: TORCH_EXTENSIONS_DIR, or a folder in the user's cache."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(cache) / "torch_extensions"


def locks(folder: Path) -> list[Path]:
    """The locks below the root: `<root>/<python and device>/<operation>/lock`, or one level less."""
    return sorted({*folder.glob(f"*/{LOCK_NAME}"), *folder.glob(f"*/*/{LOCK_NAME}")})


def take(path: Path) -> int | None:
    """Create a lock that shows whether its holder is alive; returns its file descriptor, or None if it exists."""
    try:
        held = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return None
    with contextlib.suppress(OSError):  # the file system does not support flock, or is full
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(held, _OURS)
    return held


def look(path: Path) -> LockState | None:
    """The holder of a lock; None if the lock no longer exists."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            return _judge(path, file)
        finally:
            os.close(file)
    return None


def remove_stale(path: Path) -> bool:
    """Remove a lock if certainly no process holds it; returns whether this process removed it."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Only its holder removes it. If another process has removed the lock and a third one created it again, the path
        # leads to another file.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _judge(path, file).stale or not os.path.samestat(os.fstat(file), os.stat(path)):
            return False
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def in_words(path: Path, state: LockState) -> str:
    """The holder of a lock that is not stale, and what to do if it hangs."""
    if state.pid is not None:
        return f"process {state.pid} compiles it; if that hangs, end it and delete {path}"
    return f"{path} is held, and {state.why}; if nothing compiles there, delete it"


def _judge(path: Path, file: int) -> LockState:
    status = os.fstat(file)
    pid, hidden = _holder(path, status)
    if pid is not None:
        return LockState(pid=pid)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = False
    except BlockingIOError:
        locked = True
    except OSError:
        return LockState(why="its file system does not say who holds it")
    if locked:
        return LockState(why="a process that cannot be seen from here holds it")
    kind = _file_system(path)
    if kind not in _LOCAL:
        return LockState(why=f"a process of another host may hold it: it lies on {kind or 'an unknown file system'}")
    if os.pread(file, len(_OURS), 0) == _OURS:
        return LockState(stale=True)
    if time.time() - status.st_mtime > LONGEST_BUILD_SECONDS:
        return LockState(stale=True)
    if hidden:
        return LockState(why="processes of its owner cannot be looked at")
    return LockState(stale=True) if kind in _PRIVATE or _sees_all() else LockState(why="another container may hold it")


def _holder(path: Path, status: os.stat_result) -> tuple[int | None, bool]:
    """A process that has the lock open or compiles in its folder; and whether the lock's owner has hidden processes."""
    folder, hidden = path.parent.stat(), False
    for pid in _processes():
        try:
            if _is_in(pid, folder) or _has_open(pid, status):
                return pid, False
        except PermissionError:
            # The init process of a machine compiles nothing.
            hidden = hidden or (_owner(pid) == status.st_uid and not (pid == 1 and _sees_all()))
        except OSError:  # the process has ended
            continue
    return None, hidden


def _processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            yield int(name)


def _is_in(pid: int, folder: os.stat_result) -> bool:
    """Whether a process works in the lock's folder, as compilers do; they outlive a killed parent process."""
    return os.path.samestat(os.stat(f"/proc/{pid}/cwd"), folder)


def _has_open(pid: int, status: os.stat_result) -> bool:
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), status):
                return True
    return False


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _sees_all() -> bool:
    try:
        return os.readlink("/proc/self/ns/pid") == _ALL_PROCESSES
    except OSError:
        return False


def _file_system(path: Path) -> str:
    """The type of the file system that holds a file, such as ext4 or nfs4; "" if unknown."""
    place, best, kind = os.path.realpath(path), "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            lines = mounts.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        mount = mount.encode().decode("unicode_escape")
        inside = mount == "/" or place == mount or place.startswith(f"{mount}/")
        # The last of several mounts at one mount point hides the others.
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind
