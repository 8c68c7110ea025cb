"""Weights that are read when they are needed: a model in memory, an engine's, or a checkpoint's; and derived ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class WeightSource(Protocol):
    """Weights by name, of which none needs to be in memory.

    tensors: name → a tensor on the meta device, which has the shape and the precision.
    collective: whether all ranks must read the same weights in the same order.
    """

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Shape and precision of every weight."""
        ...

    @property
    def collective(self) -> bool:
        """Whether `read` is a collective."""
        ...

    def read(self, names: Sequence[str], keepers: Collection[int]) -> Mapping[str, Tensor]:
        """These weights, whole, on the CPU or where they are; nothing on ranks that are not among `keepers`."""
        ...


@runtime_checkable
class InParts(Protocol):
    """A collective source that can also read a weight piece by piece, so that no rank holds a large one whole."""

    def goes_in_parts(self, name: str) -> bool:
        """Whether `parts` can read this weight; the same answer on all ranks."""
        ...

    def parts(self, name: str, keepers: Collection[int]) -> Iterator[tuple[int, Tensor | None]]:
        """Pieces of the flat weight in order, each with the number of its first element; None on ranks that are not
        among `keepers`. All ranks go through this together."""
        ...


class Ranks(Protocol):
    """The ranks that write a model together; an `Axis` of the engine's mesh is one."""

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def index(self) -> int:
        """Number of this rank."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank; all of them call this."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process without others."""

    size: int = 1
    index: int = 0

    def gather(self, value: Any) -> list[Any]:
        """The own value."""
        return [value]


class InMemory:
    """Weights that are in memory already."""

    collective = False

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights
        self.tensors: Mapping[str, Tensor] = {name: on_meta(tensor) for name, tensor in weights.items()}

    def read(self, names: Sequence[str], keepers: Collection[int]) -> Mapping[str, Tensor]:
        """The tensors themselves, not copies."""
        return {name: self._weights[name] for name in names}


@dataclass(frozen=True)
class Derived:
    """A weight that is computed from others.

    sources: the names of those. compute: makes it from them, by name. like: its shape and precision (meta).
    """

    sources: tuple[str, ...]
    compute: Callable[[Mapping[str, Tensor]], Tensor]
    like: Tensor


def same(name: str, like: Tensor) -> Derived:
    """A weight as it is, of another name."""
    return Derived((name,), lambda weights: weights[name], like)


class DerivedWeights:
    """Weights that are computed from those of another source when they are read."""

    def __init__(self, source: WeightSource, derived: Mapping[str, Derived]) -> None:
        self._source, self._derived = source, derived
        self.collective = source.collective
        self.tensors: Mapping[str, Tensor] = {name: one.like for name, one in derived.items()}

    def read(self, names: Sequence[str], keepers: Collection[int]) -> Mapping[str, Tensor]:
        """Read what they are computed from, and compute them."""
        found = self._source.read(sources_of(self._derived, names), keepers)
        return {name: self._derived[name].compute(found) for name in names} if found else {}


def sources_of(derived: Mapping[str, Derived], names: Iterable[str]) -> list[str]:
    """The names of what these weights are computed from, each once, in a fixed order."""
    return list(dict.fromkeys(source for name in names for source in derived[name].sources))


def on_meta(tensor: Tensor) -> Tensor:
    """Shape and precision of a tensor, without its values."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def size_bytes(source: WeightSource) -> int:
    """The size of all weights of a source."""
    return sum(tensor.nbytes for tensor in source.tensors.values())
