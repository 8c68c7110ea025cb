"""A copy of states in host memory, from which a checkpoint is written while training changes the originals."""

from __future__ import annotations

import contextlib
import copy
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from shardyard.units import format_bytes

_CGROUP = Path("/sys/fs/cgroup")
# Share of the free memory that copies may take.
_MOST_OF_FREE = 0.8


class HostBuffers:
    """Host memory for the tensors of a snapshot; kept for the next one, because fresh memory costs page faults.

    Pinned where the states are on a GPU. Not thread-safe: `copied` and `reuse` alternate.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)
        self._used: list[tuple[Tensor, bool]] = []

    def copied(self, state: Any) -> Any:
        """A deep copy of nested dictionaries, lists and tuples with tensors, in host memory.

        Tensors that share a storage share one in the copy too, as in a file that `torch.save` writes.
        """
        storages: dict[int, Tensor] = {}
        memo: dict[int, object] = {}
        originals = list(_tensors(state))
        for tensor in originals:
            memo[id(tensor)] = self._copy(tensor, storages)
        if any(tensor.is_cuda for tensor in originals):
            torch.cuda.synchronize()
        return copy.deepcopy(state, memo)

    def reuse(self) -> None:
        """The copies are written: their memory is free for the next snapshot."""
        for buffer, pinned in self._used:
            self._free[buffer.numel(), pinned].append(buffer)
        self._used.clear()

    def _copy(self, tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in storages or not key:
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            storages[key] = self._buffer(whole.numel(), pinned=tensor.is_cuda)
            storages[key].copy_(whole, non_blocking=True)
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        found = torch.empty(0, dtype=tensor.dtype).set_(storages[key].untyped_storage(), *place)
        return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found

    def _buffer(self, size_bytes: int, *, pinned: bool) -> Tensor:
        free = self._free[size_bytes, pinned]
        buffer = free.pop() if free else _new_buffer(size_bytes, pinned=pinned)
        self._used.append((buffer, pinned))
        return buffer


def _new_buffer(size_bytes: int, *, pinned: bool) -> Tensor:
    if pinned:
        # What the driver does not pin is copied more slowly.
        with contextlib.suppress(RuntimeError):
            return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
    return torch.empty(size_bytes, dtype=torch.uint8)


def lacks_room(size_bytes: int) -> str | None:
    """Why this host has no room for copies of so many bytes; None if it has. Some of the free memory stays free."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, limit - int((_CGROUP / "memory.current").read_text()))
    if size_bytes <= _MOST_OF_FREE * free:
        return None
    return f"{socket.gethostname()} has {format_bytes(max(0, free))} free, and copies take {format_bytes(size_bytes)}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)
