"""Unpacked copies of compressed local files in the cache folder, so that their rows are read by an index too."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from shardyard.data.index.offsets import Identity, cache_folder, state_of
from shardyard.data.tables.opened import opened
from shardyard.recipe.sources.files import suffix

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 22
# What a copy leaves free, of the disk and in bytes, and how often this is looked at.
FREE_SHARE, FREE_BYTES, _LOOKED_BYTES = 0.05, 1 << 30, 1 << 26
# A copy is expected to be so many times as large as its file, and none is begun that would take half of what is free.
_EXPECTED_RATIO = 5


class _NoRoomError(Exception):
    pass


def copy_of(path: str) -> Path | None:
    """The complete copy of a compressed file in its present state, if there is one."""
    place = _place_of(path)
    return place if place is not None and place.is_file() else None


def plan_copies(paths: Sequence[str]) -> str | None:
    """Begin to make the copies that files lack, in the background; what people should know of it.

    One process of a host makes a copy, and another start goes on to the next. A copy appears whole or not at all.
    Without room for all of them none is made.
    """
    lacking = [path for path in paths if copy_of(path) is None and _place_of(path) is not None]
    if not lacking:
        return None
    folder = cache_folder() / "unpacked"
    names = Path(lacking[0]).name + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else "")
    size = sum(os.path.getsize(path) for path in lacking)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if 2 * _EXPECTED_RATIO * size > _free(folder):
            return f"{names}: there is no room in {folder} to unpack, so reading begins at the start of the file"
    except OSError as error:
        return f"{names}: {folder} cannot be used ({error}), so reading begins at the start of the file"
    for path in lacking:
        _background.make(path)
    return (
        f"{names}: unpacked once into {folder} while training begins, so that a later start reads from where it "
        "continues (`unpack: false` of the source prevents this)"
    )


def make_copy(path: str) -> bool:
    """Make the copy of a file; False if another process is making it, or there is no room."""
    place = _place_of(path)
    if place is None:
        return False
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_name(f"{_file_part(place)}.lock")) as is_ours:
            return is_ours and (place.is_file() or _written(path, place))
    except (OSError, EOFError, ValueError, _NoRoomError) as error:
        log.warning("%s is not unpacked (%s); reading begins at its start", path, error or type(error).__name__)
        return False


def _written(path: str, place: Path) -> bool:
    for left in place.parent.glob(f".partial-{_file_part(place)}-*"):
        left.unlink()  # Of a process that ended: the lock is ours.
    descriptor, partial = tempfile.mkstemp(prefix=f".partial-{_file_part(place)}-", dir=place.parent)
    try:
        with open(descriptor, "wb") as copy, opened(path) as file:
            for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
                if copy.tell() // _LOOKED_BYTES != (copy.tell() + len(chunk)) // _LOOKED_BYTES:
                    _leave_room(place.parent)
                copy.write(chunk)
            copy.flush()
            os.fsync(descriptor)
        if _place_of(path) != place:
            return False  # Changed while it was read.
        os.replace(partial, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    for other in place.parent.glob(f"{_file_part(place)}-*"):
        if other != place:
            with contextlib.suppress(OSError):
                other.unlink()
    return True


def _leave_room(folder: Path) -> None:
    if _free(folder) <= 0:
        raise _NoRoomError(f"{folder} has no room for it")


def _free(folder: Path) -> float:
    """Bytes that may be used."""
    usage = shutil.disk_usage(folder)
    return usage.free - max(FREE_SHARE * usage.total, FREE_BYTES)


def _place_of(path: str) -> Path | None:
    """Where the copy of a file in its present state is; None if the file cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        state = state_of(Identity.of(descriptor))
    finally:
        os.close(descriptor)
    name = hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:24]
    return cache_folder() / "unpacked" / f"{name}-{state}{suffix(path)}"


def _file_part(place: Path) -> str:
    return place.name.partition("-")[0]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether the lock is ours within the block."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class _Background:
    """One thread that makes copies while training reads the files themselves."""

    def __init__(self) -> None:
        self._paths: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def make(self, path: str) -> None:
        self._paths.put(path)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shardyard-unpack", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            make_copy(self._paths.get())


_background = _Background()
