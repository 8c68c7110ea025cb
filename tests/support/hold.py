"""Hooks that hold a run at a step for as long as a test wants, and that leave the processor to others meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from shardyard.engine.hooks.base import Hook
from shardyard.engine.hooks.registry import HookInputs
from shardyard.tracking.metrics.record import StepRecord

LOOK_SECONDS = 0.02


class Hold(Hook):
    """Holds a run at the step whose number is in `file`, while it is."""

    name = "hold"
    reads_metrics = False

    def __init__(self, inputs: HookInputs, *, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    def on_step(self, record: StepRecord) -> None:
        while record.step == self._held():
            time.sleep(LOOK_SECONDS)

    def _held(self) -> int | None:
        try:
            return int(self.file.read_text())
        except (FileNotFoundError, ValueError):  # not there, or being written
            return None


class Slow(Hook):
    """Rests after each step: a run that only needs to be there takes no processor from what a test waits for."""

    name = "slow"
    reads_metrics = False

    def __init__(self, inputs: HookInputs, *, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def on_step(self, record: StepRecord) -> None:
        time.sleep(self.seconds)


SLOW = f"hooks=[{{name: '{__file__}:Slow', options: {{seconds: 0.1}}}}]"
"""The override with which a run takes ten steps a second at most."""


def held_by(file: Path) -> list[dict[str, Any]]:
    """The `hooks` of a recipe that `file` holds."""
    return [{"name": f"{__file__}:Hold", "options": {"file": str(file)}}]
