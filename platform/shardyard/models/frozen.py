"""Frozen models in training: the teacher of a distillation, the reference model of preference tuning.

In the precision of the forward pass. At ZeRO stage 3 they are sharded like the trained model, otherwise each rank holds
them whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.models.pretrained import Loaded, load_weights, pretrained_config
from shardyard.models.quirks import adapters_off
from shardyard.models.slices.load import load_in_slices
from shardyard.models.slices.quirks import WholeNeededError
from shardyard.models.slices.sources import Sources
from shardyard.models.vocabulary import resize

Shard = Callable[[nn.Module, Sources], nn.Module]
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
    shard: Shard | None = None,
    report: Callable[[str], None] = lambda text: None,
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
        shard: spreads the model over the ranks, which then read its weights in slices; None holds it whole.
        report: called with a message if every rank has to load it whole before.

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
    rows = vocabulary if resize_seed is not None and own != vocabulary else None
    options: _Options = {"dtype": DTYPES[precision]}
    if attention is not None:
        options["attn_implementation"] = attention
    loaded = _load(name, config, rows, resize_seed or 0, options, in_slices=shard is not None, report=report)
    if loaded.new:
        raise ModelError(f"{name} lacks weights of a causal language model: {', '.join(loaded.new[:3])}")
    model: nn.Module = loaded.model.requires_grad_(False).eval()
    return model.to(device) if shard is None else shard(model, loaded.sources)


class _Options(TypedDict):
    """Options of `from_pretrained`."""

    dtype: torch.dtype
    attn_implementation: NotRequired[str]


def _load(
    name: str,
    config: PreTrainedConfig,
    rows: int | None,
    seed: int,
    options: _Options,
    *,
    in_slices: bool,
    report: Callable[[str], None],
) -> Loaded:
    """The model, with embeddings of `rows` rows unless None; new ones as in the trained model with this seed."""
    if in_slices:
        try:
            return load_in_slices(AutoModelForCausalLM, name, config, seed=seed, rows=rows, **options)
        except WholeNeededError as error:
            report(f"{name} cannot be read in slices, because {error}: every rank loads all of it before it is sharded")
    loaded = load_weights(AutoModelForCausalLM, name, config, seed=seed, **options)
    if rows is not None:
        resize(loaded.model, rows, seed=seed)
    return loaded


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
