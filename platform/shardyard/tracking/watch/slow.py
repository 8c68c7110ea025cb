"""Which ranks are slower than the others, and in which part of the step: pure functions of summed times.

Ranks of a step wait for the slowest one, so whole steps take equally long on all of them. What differs is the time that
a rank computes itself, without waiting for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from shardyard.tracking.watch.look import Look

# Parts that are compared; hooks and records differ between ranks by design.
COMPARED = ("data", "forward", "backward", "update")
MIN_STEPS = 10
# A smaller difference does not matter, whatever the factor: share of the step.
MIN_SHARE = 0.1


@dataclass(frozen=True)
class Slow:
    """A rank that takes `factor` times as long as the others, mostly for `part`: seconds a step, its own and theirs."""

    rank: int
    host: str
    part: str
    factor: float
    seconds: float
    others_seconds: float


def slow_ranks(before: Mapping[int, Look], now: Mapping[int, Look], factor: float) -> list[Slow]:
    """Slow ranks between two looks at the same processes; [] if there are too few steps between them."""
    parts: dict[int, dict[str, float]] = {}
    whole: dict[int, float] = {}
    for rank, after in now.items():
        earlier = before.get(rank)
        if earlier is None or earlier.pid != after.pid or after.steps - earlier.steps < MIN_STEPS:
            return []
        steps = after.steps - earlier.steps
        spent = {part: (after.parts[part] - earlier.parts.get(part, 0.0)) / steps for part in after.parts}
        parts[rank] = {part: spent.get(part, 0.0) for part in COMPARED}
        whole[rank] = sum(spent.values()) + (after.waited_seconds - earlier.waited_seconds) / steps
    if len(parts) < 2:
        return []
    own = {rank: sum(found.values()) for rank, found in parts.items()}
    found = []
    for rank, seconds in own.items():
        others = [one for one in own if one != rank]
        usual = median(own[one] for one in others)
        if seconds > factor * usual and seconds - usual > MIN_SHARE * whole[rank]:
            excess = {part: parts[rank][part] - median(parts[one][part] for one in others) for part in COMPARED}
            part = max(excess, key=lambda name: excess[name])
            theirs = median(parts[one][part] for one in others)
            found.append(Slow(rank, now[rank].host, part, seconds / max(usual, 1e-9), parts[rank][part], theirs))
    return found


class Stragglers:
    """Compares ranks over windows of at least `window_seconds`; a rank is named once it was slow in two in a row, and
    again only when another part is slow or it had recovered.

    factor: how many times as long as the others a rank has to take.
    """

    def __init__(self, factor: float, window_seconds: float) -> None:
        self._factor, self._window = factor, window_seconds
        self._begun: tuple[float, dict[int, Look]] | None = None
        self._suspected: set[int] = set()
        self._named: dict[int, str] = {}

    def see(self, looks: Sequence[Look], now: float) -> list[Slow]:
        """Take a look at all ranks at the moment `now`; returns ranks to be named."""
        current = {look.rank: look for look in looks}
        if self._begun is None or self._begun[1].keys() != current.keys():
            self._begun = (now, current)
            return []
        since, before = self._begun
        enough = all(look.steps - before[rank].steps >= MIN_STEPS for rank, look in current.items())
        if now - since < self._window or not enough:
            if any(look.steps < before[rank].steps for rank, look in current.items()):
                self._begun = (now, current)
            return []
        self._begun = (now, current)
        slow = slow_ranks(before, current, self._factor)
        again = [one for one in slow if one.rank in self._suspected]
        told = [one for one in again if self._named.get(one.rank) != one.part]
        self._suspected = {one.rank for one in slow}
        self._named = {rank: part for rank, part in self._named.items() if rank in self._suspected}
        self._named |= {one.rank: one.part for one in told}
        return told
