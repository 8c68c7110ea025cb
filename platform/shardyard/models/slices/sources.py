"""Where the values of a parameter come from: a tensor of a safetensors file, a conversion of several, or memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from shardyard.models.slices.quirks import Conversion
from shardyard.models.vocabulary import fill_rows

# Floating-point types from which one rounding gives the same bits as two, over fp32.
_PLAIN = {"F32", "BF16", "F16"}
# Elements.
_READ_AT_ONCE = 1 << 22


class Source(Protocol):
    """The values of one parameter or buffer."""

    @property
    def shape(self) -> torch.Size:
        """Of the tensor in the model, or in the file if the model has it with other axes."""
        ...

    def part(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Elements `start` to `stop` of the flattened tensor [stop - start], on the CPU."""
        ...


def whole(source: Source, dtype: torch.dtype) -> Tensor:
    """The whole tensor of a source, on the CPU."""
    return source.part(0, math.prod(source.shape), dtype).view(source.shape)


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file, of which only the needed rows are read."""

    file: Path
    key: str
    shape: torch.Size

    def part(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Elements of the flattened tensor."""
        found = torch.empty(max(0, stop - start), dtype=dtype)
        for begin in range(start, stop, _READ_AT_ONCE):
            end = min(stop, begin + _READ_AT_ONCE)
            found[begin - start : end - start] = self._some(begin, end, dtype)
        return found

    def _some(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        # safetensors' other backend, `pread`, reads the whole tensor for a slice of it. Mapped pages count as memory of
        # the process until the file is closed, therefore it is closed after a few.
        with safe_open(self.file, framework="pt", backend="mmap") as file:
            stored = file.get_slice(self.key)
            values: Tensor = (
                _elements(stored, self.shape, start, stop) if self.shape else stored[...].reshape(1)[start:stop]
            )
            if stored.get_dtype() not in _PLAIN:
                values = values.float() if dtype.is_floating_point else values
            return values.to(dtype, copy=True)


def _elements(stored: Any, shape: Sequence[int], start: int, stop: int, before: tuple[int, ...] = ()) -> Tensor:
    """Elements of the flattened sub-tensor at the index `before`, read by rows of its first axis."""
    row = math.prod(shape[1:])
    if stop <= start or not row:
        return torch.empty(0)
    first, last = start // row, (stop - 1) // row
    if first == last and len(shape) > 1:
        return _elements(stored, shape[1:], start - first * row, stop - first * row, (*before, first))
    rows: Tensor = stored[(*before, slice(first, last + 1))]
    return rows.reshape(-1)[start - first * row : stop - first * row]


@dataclass
class Converted:
    """Tensors that transformers computes from several stored ones, or from one: stacked experts, split attention.

    tensors: the stored ones, by pattern of the conversion. shapes: of the results, by name in the model.
    """

    conversion: Conversion
    tensors: Mapping[str, Sequence[Stored]]
    shapes: Mapping[str, torch.Size]
    _whole: dict[str, Tensor] = field(default_factory=dict)

    def part(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Elements of one flattened result."""
        shape = self.shapes[name]
        row = math.prod(shape[1:])
        if self.conversion.by_rows and row and stop > start:
            first, last = start // row, -(-stop // row)
            rows = self._convert(dtype, slice(first, last))[name]
            return rows.reshape(-1)[start - first * row : stop - first * row]
        if name not in self._whole:
            self._whole = self._convert(dtype, slice(None))
        result = self._whole[name].reshape(-1)[start:stop]
        if len(self._whole) == 1:
            self._whole = {}
        else:
            result = result.clone()
            del self._whole[name]
        return result

    def _convert(self, dtype: torch.dtype, rows: slice) -> dict[str, Tensor]:
        # What only moves values may round before; other operations compute in fp32, as transformers does.
        read = dtype if self.conversion.moves_only else torch.float32
        tensors = {pattern: [whole(one, read) for one in stored[rows]] for pattern, stored in self.tensors.items()}
        return {name: tensor.to(dtype) for name, tensor in self.conversion(tensors).items()}


@dataclass(frozen=True)
class Result:
    """One of the tensors that a conversion computes."""

    converted: Converted
    name: str

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.converted.shapes[self.name]

    def part(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Elements of the flattened tensor."""
        return self.converted.part(self.name, start, stop, dtype)


@dataclass(frozen=True)
class Held:
    """A tensor in memory: weights that are missing from the files, or adapters."""

    tensor: Tensor

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.tensor.shape

    def part(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Elements of the flattened tensor."""
        return self.tensor.reshape(-1)[start:stop].to("cpu", dtype)


@dataclass(frozen=True)
class Resized:
    """Embeddings with rows for another vocabulary; only ranks that hold new rows read all old ones.

    kept: rows taken from `old`. key: of the random numbers of new rows.
    """

    old: Source
    shape: torch.Size
    kept: int
    key: str

    def part(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Elements of the flattened tensor."""
        by_rows = self.old.shape[0] != self.shape[0]
        if by_rows and stop <= self.kept * math.prod(self.shape[1:]):
            return self.old.part(start, stop, dtype)
        made, old = torch.empty(self.shape), whole(self.old, torch.float32)
        # Some families hold their output matrix transposed.
        rows, before = (made, old) if by_rows else (made.T, old.T)
        rows[: self.kept] = before[: self.kept]
        fill_rows(rows, self.kept, self.key)
        return made.reshape(-1)[start:stop].to(dtype)


class Sources(dict[nn.Parameter, Source]):
    """The parameters of a model without values, each with the source of its values."""

    def of(self, parameter: nn.Parameter) -> Source:
        """The source of any parameter; one that has values is its own."""
        found = self.get(parameter)
        return Held(parameter.detach()) if found is None else found

    def fill(self, parameter: nn.Parameter, dtype: torch.dtype | None = None) -> None:
        """Read the values of a parameter, whole, in its own precision or another."""
        source = self.pop(parameter, None)
        if source is not None:
            values = source.part(0, parameter.numel(), dtype or parameter.dtype)
            parameter.data = values.clone().view(parameter.shape) if _is_part(values) else values.view(parameter.shape)


def _is_part(values: Tensor) -> bool:
    """Whether a tensor keeps the memory of a larger one alive."""
    return values.untyped_storage().nbytes() > values.numel() * values.element_size()


def equal(one: Source, other: Source) -> bool:
    """Whether two sources hold the same values; reads a block at a time."""
    if one.shape != other.shape:
        return False
    count, block = math.prod(one.shape), 1 << 24
    spans = [(start, min(count, start + block)) for start in range(0, count, block)]
    return all(torch.equal(one.part(*span, torch.float32), other.part(*span, torch.float32)) for span in spans)
