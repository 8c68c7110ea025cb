"""Batch arithmetic shared by the checks of a recipe and its plan."""

from __future__ import annotations

from shardyard.recipe.mesh import data_size
from shardyard.recipe.mixture.stages import StageOrderError, spans_of, stage_recipes
from shardyard.recipe.schema import Recipe

MAX_DEFAULT_STREAMS = 64


def default_streams(global_batch: int) -> int:
    """The default number of streams: the largest divisor of `global_batch` (sequences) up to 64."""
    return next(n for n in range(min(global_batch, MAX_DEFAULT_STREAMS), 0, -1) if global_batch % n == 0)


def streams_of(recipe: Recipe, ranks: int) -> int:
    """The number of streams of a run on `ranks` ranks.

    One stream for each row of the global batch if the data-parallel size does not divide the default, as more than 64
    never do: the number does not depend on the ranks beyond that.
    """
    if recipe.data.streams is not None:
        return recipe.data.streams
    batch = recipe.train.global_batch
    default = default_streams(batch)
    return batch if default % data_size(recipe, ranks) else default


def training_steps(recipe: Recipe) -> int | None:
    """Optimizer steps of the run; `train.tokens` is rounded up to whole steps. None if neither is given."""
    if recipe.train.steps is not None or recipe.train.tokens is None or recipe.data.sequence_length is None:
        return recipe.train.steps
    if recipe.data.stages:
        rates = [one.train.global_batch * (one.data.sequence_length or 1) for one in stage_recipes(recipe)]
        try:
            last = spans_of(recipe.data.stages, rates, None, recipe.train.tokens)[-1]
        except (StageOrderError, AssertionError):
            return None
        return last.begin + last.steps
    return -(-recipe.train.tokens // (recipe.train.global_batch * recipe.data.sequence_length))
