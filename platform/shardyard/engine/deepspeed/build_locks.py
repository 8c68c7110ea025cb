"""Locks of torch's compilation folders, and whether their holder is gone.

torch takes a lock by creating the file `lock` and gives it back by removing it, so one that was killed in between keeps
it for good, and each later process waits silently. Only the standard library is needed here.
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
# What our own processes write into a lock that they hold with flock(2), which the kernel takes back when they end.
_OURS = b"shardyard\n"
# Compiling an operation of DeepSpeed takes a minute or two.
LONGEST_BUILD_SECONDS = 1800.0
# The folder of one container alone, or of one machine alone; on others any host may hold a lock.
_PRIVATE = frozenset({"overlay", "tmpfs", "ramfs"})
_LOCAL = _PRIVATE | {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"}
# Of the processes of a machine as its kernel sees them (PROC_PID_INIT_INO of Linux): a container has others.
_ALL_PROCESSES = "pid:[4026531836]"


@dataclass(frozen=True)
class LockState:
    """Who has a lock.

    stale: certainly nobody. pid: the process that has it, where it is seen. why: why neither is known.
    """

    stale: bool = False
    pid: int | None = None
    why: str = ""


def root() -> Path:
    """Where torch compiles operations: TORCH_EXTENSIONS_DIR, or a folder of the user's cache."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(cache) / "torch_extensions"


def locks(folder: Path) -> list[Path]:
    """The locks below the root: `<root>/<python and device>/<operation>/lock`, or one folder less."""
    return sorted({*folder.glob(f"*/{LOCK_NAME}"), *folder.glob(f"*/*/{LOCK_NAME}")})


def take(path: Path) -> int | None:
    """Create a lock, so that others see whether its holder lives; returns its file descriptor, None where it exists."""
    try:
        held = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except FileExistsError:
        return None
    with contextlib.suppress(OSError):  # a file system that knows no flock, or is full
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(held, _OURS)
    return held


def look(path: Path) -> LockState | None:
    """Who has a lock; None where it is not there any more."""
    with contextlib.suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            return _judge(path, file)
        finally:
            os.close(file)
    return None


def remove_stale(path: Path) -> bool:
    """Remove a lock if certainly nobody has it; returns whether this process has removed it."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Whoever removes it holds it: a lock that another process has removed and a third one taken is another file.
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
    """Who has a lock that is not stale, and what to do about one that hangs."""
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
    """A process that has the lock open, or compiles beside it; and whether its owner has some that cannot be seen."""
    folder, hidden = path.parent.stat(), False
    for pid in _processes():
        try:
            if _is_in(pid, folder) or _has_open(pid, status):
                return pid, False
        except PermissionError:
            # The first process of a machine compiles nothing.
            hidden = hidden or (_owner(pid) == status.st_uid and not (pid == 1 and _sees_all()))
        except OSError:  # it has ended
            continue
    return None, hidden


def _processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            yield int(name)


def _is_in(pid: int, folder: os.stat_result) -> bool:
    """Compilers outlive the process that started them and was killed; they work in the folder of the lock."""
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
    """The type of the file system that a file lies on, such as ext4 or nfs4; "" where it is not known."""
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
        # The last of several at one place covers the others.
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind
