"""Whole tensors from parts of them, and parts of whole tensors: only the values that are asked for are read.

Parts are of equal size along one dimension. Everything is flat: a part of [A, n·B, C] along dimension 1 is, for each of
the A outer indices, a run of B·C values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Values(Protocol):
    """A flat tensor that lies somewhere."""

    @property
    def size(self) -> int:
        """The number of its values."""

    def read(self, begin: int, end: int, dtype: torch.dtype | None = None) -> Tensor:
        """The values from `begin` up to `end`, in a precision or their own; zeros beyond the last one."""


class Joined:
    """A tensor of which others are equal parts. outer: product of the dimensions before the one that is divided."""

    def __init__(self, parts: Sequence[Values], outer: int) -> None:
        self.parts, self.outer = tuple(parts), outer
        self.size = sum(part.size for part in parts)

    def read(self, begin: int, end: int, dtype: torch.dtype | None = None) -> Tensor:
        """The values from `begin` up to `end`; zeros beyond the last one."""
        own, last = self.size // self.outer // len(self.parts), max(begin, min(end, self.size))
        if self.outer == 1:
            spans = [(part, max(0, begin - at * own), min(own, last - at * own)) for at, part in enumerate(self.parts)]
            found = [part.read(low, high, dtype) for part, low, high in spans if low < high]
        else:
            low, high = begin // (own * len(self.parts)), -(-last // (own * len(self.parts)))
            rows = [part.read(low * own, high * own, dtype).view(high - low, own) for part in self.parts]
            skipped = low * own * len(self.parts)
            found = [torch.cat(rows, 1).flatten()[begin - skipped : last - skipped]]
        return _filled(found or [self.parts[0].read(0, 0, dtype)], end - begin)


class Cut:
    """One of `of` equal parts of a tensor. outer: product of the dimensions before the one that is divided."""

    def __init__(self, whole: Values, outer: int, index: int, of: int) -> None:
        self._whole, self._outer, self._index, self._of = whole, outer, index, of
        self.size = whole.size // of

    def read(self, begin: int, end: int, dtype: torch.dtype | None = None) -> Tensor:
        """The values from `begin` up to `end`; zeros beyond the last one."""
        own, last = self.size // self._outer, max(begin, min(end, self.size))
        if self._outer == 1:
            first = self._index * own
            return _filled([self._whole.read(first + begin, first + last, dtype)], end - begin)
        low, high = begin // own, -(-last // own)
        rows = self._whole.read(low * own * self._of, high * own * self._of, dtype).view(high - low, self._of, own)
        found = rows[:, self._index].flatten()[begin - low * own : last - low * own]
        return _filled([found], end - begin)


def joined(parts: Sequence[Values], shape: Sequence[int], dim: int) -> Values:
    """The tensor of which these are the parts along `dim`, each of `shape`."""
    return parts[0] if len(parts) == 1 else Joined(parts, math.prod(shape[:dim]))


def cut(whole: Values, shape: Sequence[int], dim: int, index: int, of: int) -> Values:
    """One of `of` equal parts of a tensor of `shape` along `dim`."""
    if of == 1:
        return whole
    outer = math.prod(shape[:dim])
    if isinstance(whole, Joined) and (whole.outer, len(whole.parts)) == (outer, of):
        return whole.parts[index]
    return Cut(whole, outer, index, of)


def _filled(found: Sequence[Tensor], size: int) -> Tensor:
    values = found[0] if len(found) == 1 else torch.cat(list(found))
    return values if len(values) == size else torch.cat([values, values.new_zeros(size - len(values))])
