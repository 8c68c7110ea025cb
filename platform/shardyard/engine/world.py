"""Where this process stands among the ranks, and the few collectives that the engine needs."""

from __future__ import annotations

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
