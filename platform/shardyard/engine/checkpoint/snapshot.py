"""A copy of states in host memory, from which a checkpoint is written while training changes the originals."""

from __future__ import annotations

import contextlib
import mmap
import socket
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from torch import Tensor

from shardyard.engine.checkpoint.rank_file import RankFile
from shardyard.units import format_bytes

_CGROUP = Path("/sys/fs/cgroup")
# Share of the free memory that copies may take.
_MOST_OF_FREE = 0.8


class HostImage:
    """Host memory for the bytes of one file; kept for the next one, because fresh memory costs page faults.

    It begins at a page, so that a file is written from it past the page cache. Pinned if a GPU has copied into it.
    """

    def __init__(self) -> None:
        self._bytes: Tensor | None = None
        self._pinned = False

    def copied(self, file: RankFile) -> Tensor:
        """The bytes of a file (uint8), which stay as they are until the next call.

        Raises:
            MemoryError: there is not so much memory.
            RuntimeError: the device could not copy.
        """
        on_gpu = any(block.values.is_cuda for block in file.blocks)
        image = self._room(file.size_bytes, pinned=on_gpu)
        at = len(file.header)
        image[:at] = torch.frombuffer(bytearray(file.header), dtype=torch.uint8)
        for block in file.blocks:
            flat = block.values.detach().reshape(-1).view(torch.uint8)
            image[at : at + flat.numel()].copy_(flat, non_blocking=True)
            at += flat.numel()
        if on_gpu:
            torch.cuda.synchronize()
        return image

    def _room(self, size_bytes: int, *, pinned: bool) -> Tensor:
        if self._bytes is None or self._bytes.numel() < size_bytes:
            self._drop()
            # Shared memory takes twice as long to fault in, and huge pages longer still where they must be found first.
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            room = mmap.mmap(-1, -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, flags=private)
            # A child would have each page copied that is written while it lives.
            with contextlib.suppress(OSError, AttributeError):
                room.madvise(mmap.MADV_DONTFORK)
            self._bytes = torch.frombuffer(room, dtype=torch.uint8)
        if pinned and not self._pinned:
            self._pinned = _pin(self._bytes)
        return self._bytes[:size_bytes]

    def _drop(self) -> None:
        if self._pinned and self._bytes is not None:
            cast("Any", torch.cuda).cudart().cudaHostUnregister(self._bytes.data_ptr())
        self._bytes, self._pinned = None, False


def _pin(memory: Tensor) -> bool:
    """Pin memory where it is; torch's own pinned memory has a power of two of bytes. What the driver does not pin is
    copied more slowly."""
    with contextlib.suppress(RuntimeError):
        return int(cast("Any", torch.cuda).cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0
    return False


def lacks_room(size_bytes: int) -> str | None:
    """Why this host has no room for copies of so many bytes; None if it has. Some of the free memory stays free."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    if size_bytes <= _MOST_OF_FREE * free:
        return None
    return f"{socket.gethostname()} has {format_bytes(max(0, free))} free, and copies take {format_bytes(size_bytes)}"
