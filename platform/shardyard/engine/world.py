"""Where this process stands among the ranks, and the few collectives that the engine needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class Rank:
    """One process of a run; `torch.distributed` is initialised when one exists."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Rank 0 writes what is written once."""
        return self.rank == 0


class PendingSum:
    """A sum over all ranks that is on its way."""

    def __init__(self, values: Sequence[float], device: torch.device) -> None:
        self._tensor = torch.tensor(values, dtype=torch.float64, device=device)
        self._work = distributed.all_reduce(self._tensor, async_op=True)

    def wait(self) -> list[float]:
        """The sums, one for each value given."""
        if self._work is not None:
            self._work.wait()
        return [float(value) for value in self._tensor.tolist()]


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Element-wise sums over all ranks."""
    return PendingSum(values, device).wait()


def gather(value: Any, rank: Rank) -> list[Any]:
    """Every rank's `value` in rank order, on every rank."""
    gathered: list[Any] = [None] * rank.world_size
    distributed.all_gather_object(gathered, value)
    return gathered


def from_first(value: Any, rank: Rank) -> Any:
    """Rank 0's `value`, on every rank."""
    holder = [value if rank.is_first else None]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]
