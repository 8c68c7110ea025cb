"""Shortening a run together with warm-up, decay and intervals."""

from __future__ import annotations

from typing import Any

from shardyard.errors import UsageError
from shardyard.recipe.schema import Recipe, Section

TRIAL_TAG = "trial"


def shortened(recipe: Recipe, steps: int, *, of: int) -> Recipe:
    """The recipe with exactly `steps` steps instead of `of`: shares stay, lengths in steps shrink in proportion."""

    def scaled(value: int | float | None, *, most: int = steps) -> int | float | None:
        if not isinstance(value, int) or value == 0:
            return value
        return min(most, max(1, round(value * steps / of)))

    stages = [
        _with(
            stage,
            at=scaled(stage.at),
            at_tokens=None if stage.at_tokens is None else scaled(stage.at_tokens, most=stage.at_tokens),
        )
        for stage in recipe.data.stages
    ]
    data = _with(recipe.data, stages=stages) if stages else recipe.data
    train = _with(recipe.train, steps=steps, tokens=None, epochs=None, minutes=None)
    schedule = _with(
        recipe.schedule,
        warmup=scaled(recipe.schedule.warmup, most=max(0, steps - 1)),
        step_size=scaled(recipe.schedule.step_size),
    )
    every = {
        name: _with(getattr(recipe, name), every=scaled(getattr(recipe, name).every))
        for name in ("evaluate", "checkpoint", "tracking")
    }
    result: Recipe = _with(recipe, train=train, schedule=schedule, data=data, **every)
    return result


def as_trial(recipe: Recipe, steps: int, *, of: int) -> Recipe:
    """A short trial of a recipe that trains `of` steps, with the tag `trial`.

    Raises:
        UsageError: the trial is not shorter than the recipe.
    """
    if steps >= of:
        raise UsageError(f"--try {steps} does not shorten {recipe.name}, which trains {of} steps; give fewer.")
    trial = shortened(recipe, steps, of=of)
    tagged: Recipe = _with(trial, tracking=_with(trial.tracking, tags=[*trial.tracking.tags, TRIAL_TAG]))
    return tagged


def _with(section: Any, **fields: Any) -> Any:
    assert isinstance(section, Section)
    return section.model_copy(update=fields)
