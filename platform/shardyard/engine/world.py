"""The rank of a process among all ranks, from the launcher. `engine/mesh.py` creates the mesh of a run from it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


def ranks_here() -> int:
    """The ranks of the run on this host, from the launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Rank:
    """One process of a run; `torch.distributed` is initialised before one is created.

    world_size: the number of all ranks, along all axes.
    local_rank: its number on its node.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes shared files."""
        return self.rank == 0
