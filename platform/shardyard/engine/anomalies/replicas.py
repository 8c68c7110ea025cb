"""Whether ranks that hold the same weights still do: a hash in each step, compared every N steps.

At stages 1 and 2, an update overwrites the weights with the optimizer's, so a flipped bit lives until then: the weights
are hashed in every step, right before its update. The hashes of the steps are folded into one number on the device,
and the host reads it only for a comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from shardyard.engine.anomalies.content_hash import ContentHash
from shardyard.engine.mesh import Mesh

Kind = Literal["weights", "experts", "second copies"]
KINDS: tuple[Kind, ...] = ("weights", "experts", "second copies")
# Weights whose names are told.
_MOST_NAMES = 3
_FOLD = 0x2545F4914F6CDD1D


@dataclass(frozen=True)
class Difference:
    """What is not equal. ranks: those that differ from the majority of their group, or all of it; text: in words."""

    ranks: tuple[int, ...]
    text: str


class Replicas:
    """The replicated weights of this rank, as the other ranks should have them.

    compared_step, compared_before: steps of the last comparison and of the one before; 0 if there was none.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, *, second_copies: int = 1) -> None:
        """`second_copies`: ranks that share a second copy of the weights (ZeRO++ hpZ)."""
        self._model, self._mesh, self._second_copies = model, mesh, second_copies
        self._hash = ContentHash(mesh.device)
        self._folded = torch.zeros(len(KINDS), dtype=torch.int64, device=mesh.device)
        self.compared_step = self.compared_before = 0

    def add(self) -> None:
        """Fold the hash of the weights, as they are now, into that of the steps before. The host does not wait."""
        kinds = {kind: [] for kind in KINDS}  # type: dict[Kind, list[Tensor]]
        for _, kind, tensor in _replicated(self._model):
            kinds[kind].append(tensor)
        self._folded.mul_(_FOLD).add_(torch.stack([self._hash(kinds[kind]) for kind in KINDS]))

    def compare(self, step: int, buffers: Sequence[Tensor] = ()) -> Difference | None:
        """What differs between ranks since the last comparison; None if nothing does. All ranks call this.

        Args:
            buffers: further tensors that are equal on all ranks with the same weights, now.
        """
        self._folded[0].add_(self._hash(buffers))
        every = torch.empty(self._mesh.world.size * len(KINDS), dtype=torch.int64, device=self._mesh.device)
        distributed.all_gather_into_tensor(every, self._folded, group=self._mesh.world.group)
        hashes = every.view(-1, len(KINDS)).tolist()
        self._folded.zero_()
        self.compared_before, self.compared_step = self.compared_step, step
        ranks = tuple(
            sorted({rank for index, kind in enumerate(KINDS) for rank in self._odd(kind, [h[index] for h in hashes])})
        )
        return Difference(ranks, self._in_words(ranks, self.compared_before)) if ranks else None

    def _odd(self, kind: Kind, values: Sequence[Hashable]) -> list[int]:
        """The ranks whose value is not that of the majority of the ranks that hold the same."""
        groups: dict[Hashable, list[int]] = {}
        for rank in range(self._mesh.world.size):
            groups.setdefault(self._holds(kind, rank), []).append(rank)
        return [rank for group in groups.values() for rank in minority(group, [values[rank] for rank in group])]

    def _holds(self, kind: Kind, rank: int) -> Hashable:
        """Which part of the model a rank has, of weights of a kind."""
        shape = self._mesh.shape
        part = shape.index("tensor", rank)
        if kind == "experts":
            return part, shape.index("expert", rank)
        return (part, rank % self._second_copies) if kind == "second copies" else part

    def _in_words(self, ranks: Sequence[int], before: int) -> str:
        """All ranks call this."""
        own = {name: int(self._hash([tensor])) for name, _, tensor in _replicated(self._model)}
        kinds = {name: kind for name, kind, _ in _replicated(self._model)}
        every = self._mesh.world.gather(own)
        differing = [name for name in own if self._odd(kinds[name], [one.get(name) for one in every])]
        names = ", ".join(differing[:_MOST_NAMES]) + (" and others" if len(differing) > _MOST_NAMES else "")
        where = f"in {names}" if names else "in weights that an update has overwritten since"
        since = f"they were equal at step {before}" if before else "they had not been compared before"
        return f"{_told(ranks, self._mesh.world.size)} {where}; {since}"


def minority(ranks: Sequence[int], values: Sequence[Hashable]) -> list[int]:
    """The ranks whose value is not that of more than half of them; all if no value is, none if all are equal."""
    value, count = Counter(values).most_common(1)[0]
    if count == len(ranks):
        return []
    if 2 * count <= len(ranks):
        return list(ranks)
    return [rank for rank, one in zip(ranks, values, strict=True) if one != value]


def _told(ranks: Sequence[int], size: int) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} differs from the {size - 1} others" if size > 2 else f"rank {ranks[0]} differs"
    listed = f"{', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
    return f"ranks {listed} differ{' from each other' if len(ranks) == size else ''}"


def _replicated(model: nn.Module) -> Iterator[tuple[str, Kind, Tensor]]:
    """Weights of which several ranks have the same, by name: (name, kind, values). Under ZeRO-3 those that stay whole
    on each rank, and second copies."""
    for name, parameter in model.named_parameters():
        marked: Any = parameter
        kind: Kind = "weights" if getattr(marked, "allreduce", True) else "experts"
        if not hasattr(marked, "ds_id"):
            yield name, kind, parameter.data
            continue
        if getattr(marked, "ds_persist", False) and parameter.data.numel() == marked.ds_numel:
            yield name, kind, parameter.data
        second = getattr(marked, "ds_secondary_tensor", None)
        if second is not None:
            yield f"{name} (second copy)", "second copies", second
