"""A file that several threads write block by block, past the page cache where the file system allows it.

Writing through the page cache costs a copy in the kernel, and first of all memory: a machine that has to find gigabytes
of it for a checkpoint gives up what it had cached of the data, and in a virtual machine each new page is a fault of
the host too (0.4 instead of 2.3 GB/s, one core of an AMD EPYC). Independent of torch.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

import numpy

_DIRECT = getattr(os, "O_DIRECT", 0)
# Direct writes begin and end at multiples of it in memory and file; 4096 holds for every usual disk.
_ALIGNED_BYTES = 4096
# Smaller files are written through the page cache.
_SMALL_BYTES = 1 << 20
_VECTORS = 512


class Output:
    """A file under construction. `write` may be called from several threads; `finish` when all of them have ended."""

    def __init__(self, path: Path, size_bytes: int = 0) -> None:
        """`size_bytes`: of the whole file, if it is known."""
        self._path, self._size = path, size_bytes
        self._descriptor = -1
        self._direct = False
        self._staging: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._lock = threading.Lock()

    def __enter__(self) -> Output:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        if _DIRECT and self._size >= _SMALL_BYTES:
            self._try_direct()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def _try_direct(self) -> None:
        """Open it anew past the page cache, and take its space, where the file system has both."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | _DIRECT)
        except OSError:
            return
        os.close(self._descriptor)
        self._descriptor, self._direct = descriptor, True
        try:
            os.posix_fallocate(descriptor, 0, self._size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise

    def write(self, block: Sequence[memoryview], offset: int) -> None:
        """Write buffers one after the other from a byte of the file on.

        Raises:
            OSError: they cannot be written.
        """
        if not self._direct:
            self._write_cached(block, offset)
            return
        try:
            if len(block) == 1 and _is_aligned(block[0]):
                self._write_direct(block[0], offset)
            else:
                self._write_staged(block, offset)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EFAULT):
                raise
            # A file system that takes the flag and refuses the write, a disk with larger sectors, memory of a device.
            self._through_cache()
            self._write_cached(block, offset)

    def finish(self, size_bytes: int) -> None:
        """Give the file its size and sync it to the disk.

        Raises:
            OSError: the disk is full or broken.
        """
        if self._direct or self._size:
            os.ftruncate(self._descriptor, size_bytes)
        os.fsync(self._descriptor)

    def _staged(self, size: int) -> mmap.mmap:
        """Aligned memory for a block; at most as many as there are threads."""
        with contextlib.suppress(Empty):
            found = self._staging.get_nowait()
            if len(found) >= size:
                return found
        return mmap.mmap(-1, max(_ALIGNED_BYTES, -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES))

    def _write_staged(self, block: Sequence[memoryview], offset: int) -> None:
        size = sum(map(len, block))
        staging = self._staged(size)
        target = numpy.frombuffer(staging, dtype=numpy.uint8)
        at = 0
        for piece in block:
            # Unlike an assignment of slices, this leaves the interpreter to others.
            numpy.copyto(target[at : at + len(piece)], numpy.frombuffer(piece, dtype=numpy.uint8))
            at += len(piece)
        padded = -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES
        del target
        self._write_direct(memoryview(staging)[:padded], offset)
        self._staging.put(staging)

    def _write_direct(self, data: memoryview, offset: int) -> None:
        while len(data):
            count = os.pwrite(self._descriptor, data, offset)
            if count <= 0 or (count % _ALIGNED_BYTES and count != len(data)):
                raise OSError(errno.EIO, "a part of a block could not be written")
            data, offset = data[count:], offset + count

    def _through_cache(self) -> None:
        with self._lock:
            if not self._direct:
                return
            # The number of the descriptor stays, because other threads write to it.
            plain = os.open(self._path, os.O_WRONLY)
            os.dup2(plain, self._descriptor)
            os.close(plain)
            self._direct = False

    def _write_cached(self, block: Sequence[memoryview], offset: int) -> None:
        left = deque(block)
        while left:
            count = os.pwritev(self._descriptor, [left[at] for at in range(min(len(left), _VECTORS))], offset)
            if not count:
                raise OSError(errno.EIO, "nothing could be written")
            offset += count
            while left and count >= len(left[0]):
                count -= len(left.popleft())
            if count:
                left[0] = left[0][count:]


def _is_aligned(piece: memoryview) -> bool:
    """Whether it can be written from where it is."""
    return not len(piece) % _ALIGNED_BYTES and not numpy.frombuffer(piece, numpy.uint8).ctypes.data % _ALIGNED_BYTES
