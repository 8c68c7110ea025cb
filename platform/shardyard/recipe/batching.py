"""Batch arithmetic shared by the checks of a recipe and its plan."""

from __future__ import annotations

from shardyard.recipe.schema import Recipe

MAX_DEFAULT_STREAMS = 64


def default_streams(global_batch: int) -> int:
    """The default number of streams: the largest divisor of `global_batch` (sequences) up to 64."""
    return next(n for n in range(min(global_batch, MAX_DEFAULT_STREAMS), 0, -1) if global_batch % n == 0)


def training_steps(recipe: Recipe) -> int | None:
    """Optimizer steps of the run; `train.tokens` is rounded up to whole steps. None if neither is given."""
    if recipe.train.steps is not None or recipe.train.tokens is None or recipe.data.sequence_length is None:
        return recipe.train.steps
    return -(-recipe.train.tokens // (recipe.train.global_batch * recipe.data.sequence_length))
