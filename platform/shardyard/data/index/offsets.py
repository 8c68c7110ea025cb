"""Where the records of a local file begin: found block by block as they are needed, and kept for the next start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import tempfile
import threading
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.data.index.records import Finder, IrregularError, Starts
from shardyard.errors import DataError

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 24
# The offsets of a smaller file are found again in milliseconds.
KEPT_FROM_BYTES = 1 << 23
_SAMPLE_BYTES = 1 << 16
_MAGIC = b"SYINDEX1"
_HEADER_BYTES = 32
# Bytes before the records whose line is asked for, all together.
_COUNTED_BYTES = 1 << 29
# A record that is longer than this is not looked for: the file is none of records.
LONGEST_BYTES = 1 << 30


@dataclass(frozen=True)
class Identity:
    """What tells one state of a file from another; `sample` is a hash of its first and last bytes."""

    size: int
    mtime_ns: int
    sample: str

    @classmethod
    def of(cls, descriptor: int, size: int | None = None) -> Identity:
        """The identity of an open file, or of its first `size` bytes."""
        status = os.fstat(descriptor)
        size = status.st_size if size is None else size
        digest = hashlib.sha256(os.pread(descriptor, min(size, _SAMPLE_BYTES), 0))
        digest.update(os.pread(descriptor, min(size, _SAMPLE_BYTES), max(0, size - _SAMPLE_BYTES)))
        return cls(size, status.st_mtime_ns, digest.hexdigest())


@dataclass(frozen=True)
class _Found:
    """The records of the first `scanned` bytes, which end with a record."""

    starts: Starts
    scanned: int


class Offsets:
    """The records of a file as it was when it was opened. Safe for several threads.

    Records are found from the start of the file up to the one that is asked for; a complete list is kept in the cache
    folder, where other processes and later starts find it. What is appended to the file afterwards is not read.
    """

    def __init__(self, path: Path, finder: Finder) -> None:
        self.path, self._finder = path, finder
        self._width = 2 if finder.has_ends else 1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self._identity = self._seen = Identity.of(self._descriptor)
        self._lock = threading.Lock()
        self._room: Starts = np.empty(1024, np.int64)
        self._found = _Found(self._room[:0], 0)
        self._is_irregular = False
        self._uncounted = _COUNTED_BYTES
        self._kept = _kept_path(path, finder, self._identity)
        self._load()

    @property
    def is_complete(self) -> bool:
        """Whether all records are known."""
        return self._found.scanned >= self._identity.size

    def known(self, wanted: int) -> int:
        """The number of known records: at least `wanted`, unless the file has fewer.

        Raises:
            IrregularError: a block up to the wanted record is not regular.
            DataError: the file was changed.
        """
        if self._is_irregular:
            raise IrregularError
        while self._count() < wanted and not self.is_complete:
            self.scan_further()
        return self._count()

    def _count(self) -> int:
        return len(self._found.starts) // self._width

    def line(self, number: int) -> int | None:
        """The line of the file on which a known record begins, from 1; None if too much lies before it to be counted.

        This is for messages about single records; all of them together count `_COUNTED_BYTES`.
        """
        begin = int(self._found.starts[number * self._width])
        self._uncounted -= begin
        if self._uncounted < 0:
            return None
        parts = (os.pread(self._descriptor, min(BLOCK_BYTES, begin - at), at) for at in range(0, begin, BLOCK_BYTES))
        return 1 + sum(part.count(b"\n") for part in parts)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """The bytes of known records, each with its line end.

        Raises:
            DataError: the file was changed.
        """
        self._check_unchanged()
        found, records = self._found, list[bytes]()
        for number in numbers:
            first = number * self._width
            begin = int(found.starts[first])
            end = int(found.starts[first + 1]) if first + 1 < len(found.starts) else found.scanned
            records.append(os.pread(self._descriptor, end - begin, begin))
            if len(records[-1]) < end - begin:
                raise self._changed()
        return records

    def distrust(self) -> None:
        """Take the file for one without regular records from now on."""
        with self._lock:
            self._is_irregular = True

    def scan_further(self) -> None:
        """Find the records of the next block. Raises as `known` does."""
        with self._lock:
            if self._is_irregular:
                raise IrregularError
            if self.is_complete or self._load():
                return
            try:
                starts, length = self._next_records()
            except IrregularError:
                self._is_irregular = True
                raise
            self._add(starts + self._found.scanned, length)
            if self._found.scanned == self._identity.size:
                self._keep()

    def _next_records(self) -> tuple[Starts, int]:
        """Records from the next byte on, relative to it, and the number of bytes that they fill."""
        self._check_unchanged()
        begin = end = self._found.scanned
        size, part = BLOCK_BYTES, self._finder.part_bytes
        while True:
            end = begin + size if part is None else (end // part + 1) * part
            last = end >= self._identity.size
            end = min(end, self._identity.size)
            block = os.pread(self._descriptor, end - begin, begin)
            if len(block) < end - begin:
                raise self._changed()
            starts, length = self._finder.find(block, first=begin == 0, last=last)
            if last or length:
                return starts, len(block) if last else length
            if len(block) >= LONGEST_BYTES:
                raise IrregularError
            size *= 2

    def _add(self, starts: Starts, num_bytes: int) -> None:
        before = len(self._found.starts)
        count = before + len(starts)
        if count > len(self._room):
            grown = np.empty(max(count, 2 * len(self._room)), np.int64)
            grown[:before] = self._found.starts
            self._room = grown
        self._room[before:count] = starts
        # Replaced as one, for readers in other threads.
        self._found = _Found(self._room[:count], self._found.scanned + num_bytes)

    def _check_unchanged(self) -> None:
        """Refuse a file that is no longer the one whose records were found; it may have grown."""
        status = os.fstat(self._descriptor)
        if (status.st_size, status.st_mtime_ns) == (self._seen.size, self._seen.mtime_ns):
            return
        seen = Identity(status.st_size, status.st_mtime_ns, self._seen.sample)
        if status.st_size < self._identity.size:
            raise self._changed()
        if Identity.of(self._descriptor, self._identity.size).sample != self._identity.sample:
            raise self._changed()
        self._seen = seen

    def _changed(self) -> DataError:
        return DataError(f"{self.path} was changed while it was read: start the run again, with the file at rest.")

    def _load(self) -> bool:
        """Take the list that an earlier start or another process has kept; False if there is none."""
        if self._identity.size < KEPT_FROM_BYTES:
            return False
        try:
            content = np.memmap(self._kept, np.uint8, "r")
        except (OSError, ValueError):
            return False
        words, starts = content[8:_HEADER_BYTES].tobytes(), content[_HEADER_BYTES:]
        if content[:8].tobytes() != _MAGIC or words != _checked(starts):
            log.warning("%s is damaged and is made again", self._kept)
            return False
        self._found = _Found(starts.view("<i8"), self._identity.size)
        return True

    def _keep(self) -> None:
        """Write the complete list beside those of other files, or go without."""
        if self._identity.size < KEPT_FROM_BYTES:
            return
        starts = np.ascontiguousarray(self._found.starts, "<i8")
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=self._kept.parent)
            try:
                with open(descriptor, "wb") as file:
                    file.write(_MAGIC + _checked(starts))
                    file.write(starts.data)
                os.replace(partial, self._kept)
            except BaseException:
                os.unlink(partial)
                raise
            _remove_older(self._kept)
        except OSError as error:
            log.warning("the offsets of %s cannot be kept (%s); the next start finds them again", self.path, error)


def _checked(starts: npt.NDArray[Any]) -> bytes:
    """Length and checksum of a list, and room, [24]."""
    return np.array([starts.nbytes, zlib.crc32(starts.data), 0], "<u8").tobytes()


def cache_folder() -> Path:
    """The folder of what can be made again: SHARDYARD_CACHE, else ~/.cache/shardyard."""
    configured = os.environ.get("SHARDYARD_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "shardyard"


def state_of(identity: Identity) -> str:
    """A state of a file as a part of a name."""
    return hashlib.sha256(json.dumps([identity.size, identity.mtime_ns, identity.sample]).encode()).hexdigest()[:24]


def _kept_path(path: Path, finder: Finder, identity: Identity) -> Path:
    place = hashlib.sha256(f"{path.resolve()}\0{finder.name}".encode()).hexdigest()[:24]
    return cache_folder() / "offsets" / f"{place}-{state_of(identity)}.idx"


def _remove_older(kept: Path) -> None:
    """Remove the lists of earlier states of the file."""
    for other in kept.parent.glob(f"{kept.name.partition('-')[0]}-*.idx"):
        if other != kept:
            with contextlib.suppress(OSError):
                other.unlink()


_opened: weakref.WeakValueDictionary[tuple[object, ...], Offsets] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def offsets_of(path: Path, finder: Finder) -> Offsets:
    """The offsets of a file, shared by all who read it in this process.

    Raises:
        OSError: the file cannot be opened.
    """
    with _opening:
        status = path.stat()
        key = (finder.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        found = _opened.get(key)
        if found is None:
            found = _opened[key] = Offsets(path, finder)
        return found


class _Background:
    """One thread that finds the rest of the records of large files while training reads the first ones."""

    def __init__(self) -> None:
        self._files: queue.SimpleQueue[weakref.ref[Offsets]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def complete(self, offsets: Offsets) -> None:
        """Find the rest of a file's records in the background; nobody waits for it."""
        self._files.put(weakref.ref(offsets))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shardyard-offsets", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            reference = self._files.get()
            while (offsets := reference()) is not None and not offsets.is_complete:
                try:
                    offsets.scan_further()
                except (IrregularError, DataError, OSError):
                    break  # Whoever reads the file up to there meets the same.
            del offsets


background = _Background()
