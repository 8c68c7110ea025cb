"""Programs that train at the same time take turns, block by block of steps; and what their ratios are worth.

All are started once and then wait for each other, so that a block of one is seconds away from a block of another and
whatever else the machine does meets all. The first steps of a block, in which caches are cold, are not counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

ARMS = ("platform", "bare")
LIMIT_SECONDS = 900.0


class Turns:
    """What one rank of an arm knows of the turns: files in a folder that all share.

    Args:
        folder: of the files.
        arm: whose rank this is; the platform begins.
        rank: its number; all ranks of an arm take their turns together.
        block: steps of a turn.
        arms: all arms in the order of their turns.
    """

    def __init__(self, folder: Path, arm: str, rank: int, block: int, arms: Sequence[str] = ARMS) -> None:
        self._folder, self._arm, self._rank, self._block, self._arms = folder, arm, rank, block, arms
        self._place = arms.index(arm)
        self._turn = 0

    def begin(self) -> None:
        """Until all arms are ready and the first turn of this one has come."""
        self._mark("ready", 0)
        for other in self._arms:
            self._wait(other, "ready", 0)
        if self._place:
            self._wait(self._arms[self._place - 1], "done", 1)

    def after(self, step: int) -> None:
        """After a step, counted from 1: at the end of a turn, until those of the other arms are over too."""
        if step % self._block:
            return
        self._turn += 1
        self._mark("done", self._turn)
        # The first arm follows the last one's turn of the same number, and every other arm the next one's of its
        # predecessor; after its last turn it has nobody to wait for, because the predecessor has ended.
        self._wait(self._arms[self._place - 1], "done", self._turn + bool(self._place))

    def end(self) -> None:
        """This arm makes no more steps; the other need not wait for it."""
        self._mark("ended", 0)

    def _mark(self, what: str, turn: int) -> None:
        (self._folder / f"{self._arm}-{what}-{turn}-{self._rank}").touch()

    def _wait(self, arm: str, what: str, turn: int) -> None:
        """Until rank 0 of an arm has said so; its ranks end a step together."""
        end = time.monotonic() + LIMIT_SECONDS
        wanted = [self._folder / f"{arm}-{what}-{turn}-0", self._folder / f"{arm}-ended-0-0"]
        while not any(path.exists() for path in wanted):
            if time.monotonic() > end:
                raise TimeoutError(f"{arm} does not come to {what} {turn}")
            time.sleep(0.002)


def blocks(seconds: Sequence[float], block: int, warm_up: int) -> list[float]:
    """Median step time of each turn, without its first steps."""
    turns = [seconds[first : first + block] for first in range(0, len(seconds), block)]
    return [statistics.median(turn[warm_up:]) for turn in turns if len(turn) == block]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of the ratios of pairs, and the ends of its 95 % interval by Student's t over their logarithms."""
    # scipy comes with the tests; the opponent imports this file without it.
    from scipy.stats import t

    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), 0.0, math.inf
    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)
