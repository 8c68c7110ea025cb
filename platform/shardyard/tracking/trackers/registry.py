"""Trackers named in a recipe: from installed packages (entry points `shardyard.trackers`) or from a file."""

from __future__ import annotations

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.recipe.code import TRACKERS
from shardyard.suggest import suggestion
from shardyard.tracking.trackers.background import Mirror
from shardyard.tracking.trackers.base import ExternalTracker, TrackerFactory, TrackerInputs


def mirrors_of(inputs: TrackerInputs) -> list[Mirror]:
    """A mirror for each tracker in the recipe's `tracking.trackers`, in order.

    Raises:
        UsageError: a tracker cannot be imported or created.
    """
    chosen = inputs.recipe.tracking.trackers
    return [Mirror(_make(inputs, use.name, use.options), use.name) for use in chosen]


def _make(inputs: TrackerInputs, name: str, options: dict[str, object]) -> ExternalTracker:
    reference = plugins.find("trackers", name, TRACKERS)
    if reference is None:
        known = plugins.installed("trackers", TRACKERS)
        raise UsageError(f"tracking.trackers: there is no tracker {name!r}; {suggestion(name, known)}")
    factory: TrackerFactory = plugins.load(reference)
    try:
        tracker = factory(inputs, **options)
    except TypeError as error:
        raise UsageError(f"tracking.trackers: {name} does not take the options {options}: {error}") from error
    if not isinstance(tracker, ExternalTracker):
        raise UsageError(
            f"tracking.trackers: {reference} gives no ExternalTracker but {type(tracker).__name__}; see "
            "docs/extending.md."
        )
    return tracker
