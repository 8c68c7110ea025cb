"""The time limit of collectives, which follows the measured steps."""

from __future__ import annotations

from shardyard.engine.watch.collectives import limit_collectives
from shardyard.tracking.watch.beat import BEAT

# In a step, where the recipe allows as much.
LEAST_SECONDS = 300.0
FACTOR = 20.0
NUM_FIRST_STEPS = 10
# A limit that changes by less stays as it is.
_CHANGE = 1.5


def step_limit(longest_step: float, configured: float) -> float:
    """Seconds for a collective of a step whose longest so far took `longest_step`: `configured` before the first."""
    return configured if longest_step <= 0 else min(configured, max(LEAST_SECONDS, FACTOR * longest_step))


class CollectiveLimits:
    """Sets the limit of this rank's collectives: that of the recipe where ranks may wait for one that loads, evaluates
    or writes, and in the steps between one that follows from the longest of them.

    A rank whose peers are gone, or that nobody watches any more, then ends within minutes.

    configured: seconds of the recipe. alone: there are no other ranks.
    """

    def __init__(self, configured: float, *, alone: bool) -> None:
        self._alone = alone
        self._configured = self._now = configured
        self._longest = 0.0

    def in_step(self) -> None:
        """The next collectives are those of a step."""
        if self._alone or BEAT.num_steps < NUM_FIRST_STEPS:
            return
        self._longest = max(self._longest, BEAT.longest_step())
        self._set(step_limit(self._longest, self._configured))

    def beside_step(self) -> None:
        """The next collectives are those of an evaluation, a checkpoint, or other work between steps."""
        if self._now != self._configured:
            self._set(self._configured)

    def _set(self, seconds: float) -> None:
        changed = max(seconds, self._now) / min(seconds, self._now)
        if changed > _CHANGE or (seconds == self._configured and seconds != self._now):
            self._now = seconds
            limit_collectives(seconds)
