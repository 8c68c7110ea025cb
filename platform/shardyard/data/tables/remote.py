"""Remote files by requests of ranges: one open file for all who read it, and few requests for what lies close."""

from __future__ import annotations

import io
import threading
import weakref
from collections import OrderedDict, deque
from typing import Any

import fsspec  # type: ignore[import-untyped]

# The least that a request asks for, and what is kept of a file.
LEAST_BYTES, KEPT_BYTES = 1 << 22, 1 << 23


class RemoteFile:
    """A file on a server, read by ranges that are kept for a while. Safe for several threads.

    Raises:
        OSError: it cannot be read, or its size is not known.
    """

    def __init__(self, url: str) -> None:
        self._system, self._path = fsspec.core.url_to_fs(url)
        size = self._system.info(self._path)["size"]
        if size is None:
            raise OSError(f"{url.split('?')[0]}: the server does not tell its size")
        self.size = int(size)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` to before `end`."""
        end = min(end, self.size)
        if begin >= end:
            return b""
        with self._lock:
            for first, data in self._kept.items():
                if first <= begin and end <= first + len(data):
                    self._kept.move_to_end(first)
                    return data[begin - first : end - first]
            # Readers begin at the end of a file.
            last = min(self.size, max(end, begin + LEAST_BYTES))
            first = max(0, min(begin, last - LEAST_BYTES))
            data = self._asked(first, last)
            if len(data) <= KEPT_BYTES:
                self._kept[first] = data
            while sum(map(len, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return data[begin - first : end - first]

    def _asked(self, first: int, last: int) -> bytes:
        data: bytes = self._system.cat_file(self._path, start=first, end=last)
        if len(data) == self.size:
            return data[first:last]  # Also from a server that knows no ranges.
        if len(data) != last - first:
            raise ConnectionError(f"{len(data)} bytes came instead of {last - first}")
        return data


class RemoteReader(io.RawIOBase):
    """A remote file as Python's own."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._file.size if size is None or size < 0 else self._place + size
        data = self._file.read(self._place, end)
        self._place += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


_opened: weakref.WeakValueDictionary[str, RemoteFile] = weakref.WeakValueDictionary()
# Between looking at the columns of a file and reading it, nobody else holds it.
_recent: deque[RemoteFile] = deque(maxlen=4)
_opening = threading.Lock()


def remote_file(url: str) -> RemoteFile:
    """A remote file, shared by all who read it in this process."""
    with _opening:
        found = _opened.get(url)
        if found is None:
            found = _opened[url] = RemoteFile(url)
            _recent.append(found)
        return found
