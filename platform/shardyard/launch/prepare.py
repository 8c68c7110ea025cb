"""From a recipe to its plan: the tokenizer's vocabulary and the model's sizes are what the pure plan cannot know."""

from __future__ import annotations

from shardyard.data.tokenizer import load_tokenizer, vocabulary_size
from shardyard.models.measure import measure
from shardyard.recipe.plan import RunPlan, World, make_plan
from shardyard.recipe.schema import Recipe


def prepare(recipe: Recipe, world: World) -> RunPlan:
    """The plan of `recipe` in `world`.

    Raises:
        DataError: the tokenizer cannot be loaded.
        ModelError: the model cannot be built.
        RecipeError: the world does not suit the recipe.
    """
    return make_plan(recipe, measure(recipe.model, vocabulary=_vocabulary(recipe)), world)


def _vocabulary(recipe: Recipe) -> int:
    """A recipe that gives the model's vocabulary can be planned without its tokenizer, which may lie on a hub."""
    given = recipe.model.config.get("vocab_size")
    return int(given) if given is not None else vocabulary_size(load_tokenizer(recipe.tokenizer))
