"""What a recipe needs in memory beside its weights: tokenizer, configuration, objective, and how rows are made.

Training and the evaluation of what was trained both begin here, so that they measure the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from shardyard.data.formats import Context
from shardyard.data.held_out import HeldOut, held_out_rows
from shardyard.data.processors import make_processor
from shardyard.data.tokenizer import load_tokenizer, vocabulary_size
from shardyard.models.build import architecture_config, special_token_ids
from shardyard.objectives.base import Objective
from shardyard.objectives.parts import Parts
from shardyard.objectives.registry import make_objective
from shardyard.recipe.objectives import OBJECTIVES
from shardyard.recipe.schema import Recipe


@dataclass(frozen=True)
class Kit:
    """`tokenizer` is None for an objective without text, `processor` where there is none to save beside the weights;
    `context` is that of training."""

    tokenizer: Any
    config: PreTrainedConfig
    context: Context
    objective: Objective
    processor: Any = None


def make_kit(recipe: Recipe, *, tokenizer: Any = None, config: PreTrainedConfig | None = None) -> Kit:
    """Everything but the weights.

    Args:
        tokenizer: that of an exported model, in the place of the recipe's.
        config: likewise, so that the weights which it began with need not be there any more.

    Raises:
        DataError, ModelError: the tokenizer or the model's configuration cannot be had.
    """
    if tokenizer is None and OBJECTIVES[recipe.objective].text:
        tokenizer = load_tokenizer(recipe.tokenizer)
    config = config or architecture_config(
        recipe.model,
        vocabulary=vocabulary_size(tokenizer) if tokenizer is not None else None,
        special_tokens=special_token_ids(tokenizer) if tokenizer is not None else None,
    )
    context = Context(recipe.data, tokenizer, config, recipe.masking, recipe.image, recipe.audio)
    parts = Parts(
        loss=recipe.loss,
        experts=recipe.model.experts,
        preference=recipe.preference,
        distillation=recipe.distillation,
        evaluate=recipe.evaluate,
        sequence_length=recipe.data.sequence_length,
        tokenizer=tokenizer,
        model=config,
    )
    objective = make_objective(recipe.objective, parts)
    return Kit(tokenizer, config, context, objective, make_processor(recipe.objective, context))


def held_out(recipe: Recipe, kit: Kit, rows: int | None = None) -> HeldOut:
    """The recipe's held-out rows, made without augmentation.

    Raises:
        DataError: nothing is held out, or a source cannot be read.
    """
    context = replace(kit.context, training=False)
    return held_out_rows(context, rows or recipe.evaluate.rows, recipe.train.seed, objective=recipe.objective)
