"""Tensors that lie in several files, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shardyard.errors import CheckpointError


class Pieces:
    """A flat tensor that lies in several others, one after the other; `size` leaves out what fills the last one up."""

    def __init__(self, parts: Sequence[Tensor], size: int | None = None) -> None:
        self._parts = [part.flatten() for part in parts if part.numel()]
        whole = sum(part.numel() for part in self._parts)
        self.size = whole if size is None else size
        if whole < self.size:
            raise CheckpointError(f"a parameter has {whole} of its {self.size} values in the files")

    def read(self, begin: int, end: int, dtype: torch.dtype | None = None) -> Tensor:
        """The values from `begin` up to `end`, in a precision or their own; zeros beyond the last one."""
        own = self._parts[0].dtype if self._parts else torch.float32
        # Values are converted where they are needed, so that no second copy exists.
        values, at = torch.zeros(end - begin, dtype=dtype or own), 0
        for part in self._parts:
            low, high = max(begin - at, 0), min(min(end, self.size) - at, part.numel())
            if low < high:
                values[at + low - begin : at + high - begin] = part[low:high]
            at += part.numel()
        return values


def spans(groups: Sequence[Tensor], begin: int, size: int) -> Iterator[tuple[int, slice]]:
    """Number and slice of the flat tensors in which `size` values from `begin` on lie."""
    start = 0
    for number, group in enumerate(groups):
        low, high = max(begin - start, 0), min(begin + size - start, group.numel())
        if low < high:
            yield number, slice(low, high)
        start += group.numel()
