"""A `transformers` model from a recipe's `model` section."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from shardyard.errors import ModelError
from shardyard.recipe.schema import Model


def auto_class() -> Any:
    """The `Auto…` class with the head that the objective needs."""
    return AutoModelForCausalLM


def architecture_config(
    model: Model, *, vocabulary: int, special_tokens: dict[str, int | None] | None = None
) -> PreTrainedConfig:
    """The transformers configuration of a recipe's model.

    Args:
        model: the recipe's section.
        vocabulary: length of the tokenizer; a larger `vocab_size` in the recipe is kept.
        special_tokens: `bos_token_id`, `eos_token_id`, `pad_token_id` of the tokenizer.

    Raises:
        ModelError: the family is unknown, a value is refused, or the vocabulary does not hold the tokenizer.
    """
    fields = {**(special_tokens or {}), **model.config}
    try:
        if model.pretrained is not None:
            config = AutoConfig.from_pretrained(model.pretrained, **fields)
        else:
            config = AutoConfig.for_model(model.family, **{"vocab_size": vocabulary, **fields})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model: transformers refuses this configuration of {model.family!r}: {error}") from error
    if config.get_text_config().vocab_size < vocabulary:
        raise ModelError(
            f"model.config.vocab_size is {config.vocab_size}, but the tokenizer has {vocabulary} entries; "
            "leave it out, or give at least that many."
        )
    config.use_cache = False
    _set_dropout(config, model.dropout)
    return config


def _set_dropout(config: PreTrainedConfig, probability: float | None) -> None:
    """Every family has names of its own (resid_pdrop, attention_dropout, …); all of them hold a probability."""
    if probability is None:
        return
    for key, value in config.to_dict().items():
        if ("dropout" in key or "pdrop" in key) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, key, probability)


def construct(model: Model, config: PreTrainedConfig) -> PreTrainedModel:
    """The module in fp32, with whatever weights its constructor or its checkpoint gives.

    Raises:
        ModelError: the attention implementation or the pretrained weights are not available.
    """
    try:
        if model.pretrained is not None:
            built = auto_class().from_pretrained(
                model.pretrained, config=config, dtype=torch.float32, attn_implementation=model.attention
            )
        else:
            built = auto_class().from_config(config, dtype=torch.float32, attn_implementation=model.attention)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model: cannot build {model.family!r}: {error}") from error
    if model.activation_checkpointing:
        # The non-reentrant form keeps the random state of dropout and works with torch.compile and ZeRO-3.
        built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return built


def special_token_ids(tokenizer: Any) -> dict[str, int | None]:
    """Ids that the configuration of a model shares with its tokenizer."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
