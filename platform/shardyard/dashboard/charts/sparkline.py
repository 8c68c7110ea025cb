"""A curve of at most 40 numbers that grows with its run: when it is full, every other point is dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_SHOWN = 40
_MOST_KEPT = 2 * MOST_SHOWN


@dataclass
class Sparkline:
    """Keeps every `stride`-th of `seen` values."""

    stride: int = 1
    seen: int = 0
    kept: list[float | None] = field(default_factory=list)

    @classmethod
    def load(cls, text: str | None) -> Sparkline:
        """Load the result of `dump`."""
        return cls(*json.loads(text)) if text else cls()

    def dump(self) -> str:
        """The sparkline as text."""
        return json.dumps([self.stride, self.seen, self.kept])

    def add(self, values: Sequence[float]) -> None:
        """Add values; those that are not finite leave a gap."""
        begin = -self.seen % self.stride
        for value in values[begin :: self.stride]:
            self.kept.append(float(f"{value:.5g}") if math.isfinite(value) else None)
        self.seen += len(values)
        while len(self.kept) > _MOST_KEPT:
            self.kept = self.kept[::2]
            self.stride *= 2

    def shown(self, newest: float | None) -> list[float | None]:
        """At most 40 values, newest last."""
        step = -(-len(self.kept) // (MOST_SHOWN - 1)) if len(self.kept) >= MOST_SHOWN else 1
        values = self.kept[::step][: MOST_SHOWN - 1]
        return [*values, newest] if newest is not None and math.isfinite(newest) and self.kept else values
