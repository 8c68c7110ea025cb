"""What was seen of ranks over time: since when each makes no progress, and since when it does nothing. Pure.

Imports only the standard library, because it is read beside a rank too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from shardyard.tracking.watch.judge import BUSY_BYTES_PER_SECOND, BUSY_CORES, Watched
from shardyard.tracking.watch.look import Look

# A watcher that itself did not run for this long has seen nothing in the meantime.
GAP_SECONDS = 5.0


@dataclass
class _Seen:
    """The newest look at a rank, when it was taken, and since when the rank is idle."""

    look: Look
    at: float
    idle_since: float


@dataclass
class History:
    """What was seen of the ranks. Pure: the caller gives looks and times.

    begun: no earlier time counts as without progress.
    """

    begun: float
    seen: dict[int, _Seen] = field(default_factory=dict)
    latest: float = 0.0

    def add(self, looks: Sequence[Look], now: float) -> None:
        """Take looks at the moment `now`."""
        if self.latest and now - self.latest > GAP_SECONDS:
            # This process, or the machine, stood still: so may have the ranks.
            self.begun = now
        self.latest = now
        for one in looks:
            before = self.seen.get(one.rank)
            idle_since = now
            if before is not None and before.look.pid == one.pid and not _worked(before, one, now):
                idle_since = before.idle_since
            self.seen[one.rank] = _Seen(one, now, idle_since)

    def watched(self, now: float) -> list[Watched]:
        """The ranks as they are now. Those of a node that does not answer are left out: Ray tells when it is lost."""
        recent = [one for one in self.seen.values() if now - one.at <= GAP_SECONDS]
        longest = max(0.0, now - self.begun)
        return [
            Watched(_not_older(one.look, longest), min(longest, now - one.idle_since))
            for one in sorted(recent, key=lambda one: one.look.rank)
        ]


def _not_older(one: Look, longest: float) -> Look:
    return one if one.age_seconds <= longest else replace(one, age_seconds=longest)


def _worked(before: _Seen, now_look: Look, now: float) -> bool:
    seconds = max(now - before.at, 1e-3)
    cores = (now_look.cpu_seconds - before.look.cpu_seconds) / seconds
    read = (now_look.io_bytes - before.look.io_bytes) / seconds
    return now_look.beats != before.look.beats or cores > BUSY_CORES or read > BUSY_BYTES_PER_SECOND
