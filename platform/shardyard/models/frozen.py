"""Frozen models in training: the teacher of a distillation, the reference model of preference tuning.

Each rank holds them whole, in the precision of the forward pass; ZeRO does not shard them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.models.pretrained import load_weights, pretrained_config
from shardyard.models.quirks import adapters_off
from shardyard.models.vocabulary import resize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def frozen_causal_lm(
    name: str,
    *,
    vocabulary: int,
    precision: str,
    device: torch.device,
    attention: str | None = None,
    resize_seed: int | None = None,
    tokens: int | None = None,
) -> nn.Module:
    """A causal language model that provides probabilities and is never trained.

    Args:
        name: folder or hub id.
        vocabulary: rows of the embeddings of the trained model.
        precision: of its weights.
        device: where it computes.
        attention: attention implementation of transformers; None uses the default.
        resize_seed: resize its embeddings to `vocabulary`, as those of the trained model were with this seed.
        tokens: entries of the tokenizer; its embeddings need as many rows, and may have others for padding. By default
            `vocabulary`: both have the same rows.

    Raises:
        ModelError: the model cannot be loaded, or has another vocabulary.
    """
    config = _config(name)
    own = config.get_text_config().vocab_size
    if resize_seed is None and (own < tokens if tokens is not None else own != vocabulary):
        raise ModelError(
            f"{name} has a vocabulary of {own} entries and the model that is trained one of {tokens or vocabulary}, so "
            "their probabilities cannot be compared; use models with the same tokenizer."
        )
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    loaded = load_weights(AutoModelForCausalLM, name, config, seed=0, dtype=DTYPES[precision], **options)
    if loaded.new:
        raise ModelError(f"{name} lacks weights of a causal language model: {', '.join(loaded.new[:3])}")
    if resize_seed is not None and own != vocabulary:
        resize(loaded.model, vocabulary, seed=resize_seed)
    loaded.model.to(device)
    loaded.model.requires_grad_(False)
    model: nn.Module = loaded.model
    return model.eval()


class AdapterOff:
    """The pretrained model under an adapted one: the same weights, with the adapters disabled during each call."""

    def __init__(self, adapted: nn.Module) -> None:
        self._adapted = adapted

    @property
    def module(self) -> nn.Module | None:
        """The model whose output layer also computes the pretrained model's logits; None if the layer is adapted."""
        layer = self._adapted.get_output_embeddings()  # type: ignore[operator]
        adapted = layer is not None and len(list(layer.modules())) > 1
        return None if adapted else self._adapted

    def __call__(self, **inputs: Any) -> Any:
        """The output of the pretrained model, without gradients or dropout."""
        training = self._adapted.training
        self._adapted.eval()
        try:
            with torch.no_grad(), adapters_off(self._adapted):
                return self._adapted(**inputs)
        finally:
            self._adapted.train(training)


def _config(name: str) -> PreTrainedConfig:
    try:
        config = pretrained_config(name)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name} cannot be loaded: {first}") from error
    config.use_cache = False
    return config
