"""Rules for batches that are skipped, by number or because of what they do."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.recipe.batching import training_steps
from shardyard.recipe.fields import Path
from shardyard.recipe.lengths import skipped_steps, span_of
from shardyard.recipe.schema import Anomalies, Recipe

Finding = tuple[Path, str]
# More would not fit a message, nor be meant.
_MOST_STEPS = 1_000_000


def anomaly_rules(recipe: Recipe) -> Iterator[Finding]:
    """All rules of this file."""
    yield from _skip_steps(recipe)
    yield from _actions(recipe.anomalies)


def _skip_steps(recipe: Recipe) -> Iterator[Finding]:
    entries, steps = recipe.train.skip_steps, training_steps(recipe)
    for index, entry in enumerate(entries):
        span, path = span_of(entry), ("train", "skip_steps", index)
        if not span or span.start < 1:
            yield path, f"is {entry}; write the first and the last step, from 1 on, such as 1500-1700"
        elif steps is not None and span.stop - 1 > steps:
            yield path, f"is {entry}, and the run has {steps} steps; remove it, or shorten it to {steps}"
        elif len(span) > _MOST_STEPS:
            yield path, f"is {entry}, more than {_MOST_STEPS:,} steps; skip fewer, or train.steps from a later start"
    if steps is not None and not any(True for _ in _odd(recipe)) and len(skipped_steps(entries)) >= steps:
        yield ("train", "skip_steps"), f"skips all {steps} steps; leave some to train on"


def _odd(recipe: Recipe) -> Iterator[int | str]:
    return (one for one in recipe.train.skip_steps if len(span_of(one)) > _MOST_STEPS)


def _actions(settings: Anomalies) -> Iterator[Finding]:
    """Settings that would have no effect."""
    actions = (settings.on_nan, settings.on_spike)
    defaults = Anomalies()
    needs = {
        "signals": settings.on_spike != "continue",
        "threshold": settings.on_spike != "continue",
        "window": settings.on_spike != "continue",
        "before": "rollback" in actions,
        "rate_factor": "lower_rate" in actions,
        "rate_steps": "lower_rate" in actions,
        "at_most": any(action not in ("stop", "continue") for action in actions),
    }
    wanted = {"before": "rollback", "rate_factor": "lower_rate", "rate_steps": "lower_rate"}
    for name, has_effect in needs.items():
        if not has_effect and getattr(settings, name) != getattr(defaults, name):
            by = "on_spike is continue" if name in ("signals", "threshold", "window") else ""
            by = by or f"neither on_nan nor on_spike is {wanted.get(name, 'skip, rollback or lower_rate')}"
            yield ("anomalies", name), f"does nothing while {by}; set that, or remove this"
