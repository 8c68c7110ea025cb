"""Configurations of models that hear, as far as they differ from those of other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from shardyard.recipe.schema import Model

# Encoder–decoders whose decoder has a configuration of its own.
TEXT_PARTS = {"canary": "decoder_config", "speech-encoder-decoder": "decoder"}


def settle_sound(config: PreTrainedConfig, model: Model) -> None:
    """Turn off random choices of encoders of sound that a recipe does not ask for, and complete what a family lacks.

    Their masks come from numpy's global generator, which a resumed run would not repeat (`audio` has masks of ours);
    a dropped layer would be dropped on some ranks only.
    """
    for part, own in _parts(config, model.config):
        if not _hears(part):
            continue
        if not hasattr(part, "speech_encoder_layerdrop"):  # data2vec-audio reads it without declaring it
            part.apply_spec_augment = False
        for name in part.to_dict():
            if name.endswith("layerdrop"):
                setattr(part, name, own.get(name, 0.0))
    if config.model_type == "moonshine_streaming" and not hasattr(config, "num_key_value_heads"):
        # Its decoder reads a field that its configuration does not declare (transformers 5.22).
        config.num_key_value_heads = config.num_attention_heads
    if config.model_type == "speech-encoder-decoder":
        decoder: Any = config.decoder
        decoder.is_decoder = decoder.add_cross_attention = True


def _parts(config: PreTrainedConfig, own: Mapping[str, object]) -> list[tuple[Any, Mapping[str, object]]]:
    """The configuration and those inside it, each with the recipe's fields for it."""
    found: list[tuple[Any, Mapping[str, object]]] = [(config, own)]
    for name in config.sub_configs:
        part, fields = getattr(config, name, None), own.get(name)
        if part is not None:
            found.append((part, fields if isinstance(fields, Mapping) else {}))
    return found


def _hears(config: Any) -> bool:
    names = ("ctc_loss_reduction", "speech_encoder_layerdrop", "apply_spec_augment")
    return any(hasattr(config, name) for name in names)
