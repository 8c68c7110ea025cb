"""A hook that makes a rank hang or dawdle: in an endless loop instead of a collective, by sleeping."""

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

    def __init__(self, inputs: HookInputs, *, folder: str, loops: int, dawdles: int) -> None:
        super().__init__()
        self.folder, self.loops, self.dawdles = Path(folder), loops, dawdles
        self.rank, self.step = inputs.mesh.rank, 1
        self.own = distributed.new_group(backend="gloo")
        inputs.model.register_forward_pre_hook(self.before_forward)

    def on_step(self, record: StepRecord) -> None:
        self.step = record.step + 1

    def before_forward(self, model: nn.Module, inputs: object) -> None:
        if not model.training:
            return
        if self.step == self.loops and self.once():
            if self.rank == 0:
                distributed.all_reduce(torch.ones(3), group=self.own)
            while True:
                pass
        if self.rank == 1 and self.step >= self.dawdles:
            time.sleep(DAWDLES_SECONDS)

    def once(self) -> bool:
        """Whether the loop has not been yet; each rank marks it for itself."""
        mark = self.folder / f"loop-{self.rank}"
        if mark.exists():
            return False
        mark.touch()
        return True


def faults_in(folder: Path, *, loops: int, dawdles: int) -> list[dict[str, object]]:
    """The `hooks` of a recipe with faults before these steps."""
    options = {"folder": str(folder), "loops": loops, "dawdles": dawdles}
    return [{"name": f"{__file__}:Faults", "options": options}]
