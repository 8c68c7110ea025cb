"""The names of trained parameters in the order of an optimizer's groups, from a recipe alone."""

from __future__ import annotations

from shardyard.engine.checkpoint.filling import trained_names
from shardyard.engine.components import make_components
from shardyard.errors import UsageError
from shardyard.models.build import skeleton
from shardyard.models.pretrained import freeze
from shardyard.recipe.schema import Recipe


def names_of(recipe: Recipe) -> list[str]:
    """The names of trained parameters, in the order in which DeepSpeed has them at ZeRO stage 0.

    Raises:
        UsageError: the run trains an adapter, whose names follow from the pretrained model.
    """
    if recipe.model.adapter is not None:
        raise UsageError(
            "a checkpoint of an adapter at ZeRO stage 0 is not converted; `shardyard export RUN` writes it."
        )
    model = skeleton(recipe.model, make_components(recipe).config, recipe.objective)
    freeze(getattr(model, "module", model), recipe.model.freeze)
    return trained_names(model, faster_b=False)
