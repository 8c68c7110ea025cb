"""What a tracker is: a place beside the run folder that the records of a run are copied to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardyard.recipe.schema import Recipe


@dataclass(frozen=True)
class TrackerInputs:
    """What a tracker is made from.

    run_id: unique; a resumed run has the same. folder: of the run, where a tracker may keep files of its own.
    """

    recipe: Recipe
    run_id: str
    folder: Path


class ExternalTracker:
    """Base of trackers. Rank 0 has one for each attempt of a run.

    The methods are called one after the other, on a thread of their own: they may wait for a server. What they raise
    becomes a notice of the run, which goes on without this tracker.
    """

    def start(self) -> str | None:
        """Open the place; returns where people find it, such as a URL or a path."""
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take one record. A resumed run repeats the steps after its checkpoint."""
        raise NotImplementedError

    def finish(self, outcome: str) -> None:
        """Close the place; the run is `finished`, `paused`, `interrupted`, `preempted`, out of its time (`timeout`) or
        `failed`."""


TrackerFactory = Callable[..., ExternalTracker]
"""Called with `TrackerInputs` and the recipe's options by name; a subclass of `ExternalTracker` is one."""
