"""A hook that makes a rank hang or dawdle: in an endless loop, by a collective that it skips, by sleeping."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import distributed, nn

from shardyard.engine.hooks.base import Hook
from shardyard.engine.hooks.registry import HookInputs
from shardyard.tracking.metrics.record import StepRecord

DAWDLES_SECONDS = 0.25


class Faults(Hook):
    """Faults of rank 1 in a forward pass. `folder` remembers those that were."""

    name = "faults"
    reads_metrics = False

    def __init__(self, inputs: HookInputs, *, folder: str, loops: int, skips: int, dawdles: int) -> None:
        super().__init__()
        self.folder, self.at, self.dawdles = Path(folder), {"loop": loops, "skip": skips}, dawdles
        self.rank, self.step = inputs.mesh.rank, 1
        self.own = distributed.new_group(backend="gloo")
        inputs.model.register_forward_pre_hook(self.before_forward)

    def on_step(self, record: StepRecord) -> None:
        self.step = record.step + 1

    def before_forward(self, model: nn.Module, inputs: object) -> None:
        if not model.training:
            return
        if self.rank == 1 and self.once("loop"):
            while True:
                pass
        if self.once("skip") and self.rank == 0:
            distributed.all_reduce(torch.ones(3), group=self.own)
        if self.rank == 1 and self.step >= self.dawdles:
            time.sleep(DAWDLES_SECONDS)

    def once(self, fault: str) -> bool:
        """Whether a fault is due; it is marked by each rank for itself."""
        mark = self.folder / f"{fault}-{self.rank}"
        if self.step != self.at[fault] or mark.exists():
            return False
        mark.touch()
        return True


def faults_in(folder: Path, *, loops: int, skips: int, dawdles: int) -> list[dict[str, object]]:
    """The `hooks` of a recipe with faults before these steps."""
    options = {"folder": str(folder), "loops": loops, "skips": skips, "dawdles": dawdles}
    return [{"name": f"{__file__}:Faults", "options": options}]
