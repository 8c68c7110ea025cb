"""The interface of a tracker, to which the records of a run are copied in addition to the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardyard.recipe.schema import Recipe


@dataclass(frozen=True)
class TrackerInputs:
    """The inputs of a tracker.

    run_id: unique; unchanged when a run is resumed. folder: of the run, where a tracker may store its own files.
    """

    recipe: Recipe
    run_id: str
    folder: Path


class ExternalTracker:
    """Base class of trackers. Rank 0 has one for each attempt of a run.

    The methods are called sequentially on a separate thread, so they may wait for a server. An exception becomes a
    notice of the run, which continues without this tracker.
    """

    def start(self) -> str | None:
        """Open the tracker; returns its location for users, such as a URL or a path."""
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one step. A resumed run repeats the steps after its checkpoint."""
        raise NotImplementedError

    def finish(self, outcome: str) -> None:
        """Close the tracker; outcomes are `finished`, `paused`, `resized` (goes on on more workers),
        `interrupted`, `preempted`, `timeout` (time limit reached) and `failed`."""


TrackerFactory = Callable[..., ExternalTracker]
"""Called with `TrackerInputs` and the recipe's options by name; a subclass of `ExternalTracker` is one."""
