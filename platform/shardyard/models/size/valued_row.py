"""A row with values through a narrow copy of a model: whether a failure on the meta device is one of the model."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.models.probes.narrow import Narrow, narrow_model
from shardyard.models.size.row_shapes import row_shape
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Recipe

SHORT_ROW = 16


def check_narrow(config: PreTrainedConfig, recipe: Recipe, error: ModelError) -> None:
    """Raise `error` unless a narrow copy of the model takes a row of the recipe's objective.

    Raises:
        ModelError: `error`.
    """
    length = min(recipe.data.sequence_length or SHORT_ROW, SHORT_ROW)
    source = min(recipe.data.source_length or length, SHORT_ROW)
    data = recipe.data.model_copy(update={"sequence_length": length, "source_length": source})

    def takes_a_row(narrow: Narrow) -> None:
        model = narrow.model
        inputs, _ = row_shape(recipe.objective)(model.config, data, recipe.image)
        with torch.no_grad():
            model(**{name: _valued(model.config, tensor) for name, tensor in inputs.items()})

    try:
        narrow_model(config, objective_spec(recipe.objective).auto_class_of(recipe.model.family), check=takes_a_row)
    except ModelError as refusal:
        raise error from refusal


def _valued(config: PreTrainedConfig, shape: Tensor) -> Tensor:
    """An input of that shape, on the CPU; ids end with the token that ends a text."""
    if shape.is_floating_point():
        return torch.zeros(shape.shape, dtype=shape.dtype)
    ids = torch.arange(shape.numel()).view(shape.shape) % SHORT_ROW + 5
    end = getattr(config.get_text_config(), "eos_token_id", None)
    if isinstance(end, int):
        ids[:, -1] = end
    return ids
