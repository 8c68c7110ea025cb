"""A `transformers` model from a recipe's `model` section."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from shardyard.errors import ModelError
from shardyard.models.outside import (
    ModuleConfig,
    OutsideModel,
    load_module_weights,
    make_module,
    meta_device,
    module_config,
)
from shardyard.models.pretrained import Loaded, load_weights, place, pretrained_config
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.image_tokens import image_tokens
from shardyard.recipe.schema import Image, Model

# What transformers raises for values that it cannot build a model from, depending on where it trips over them.
_REFUSALS = (
    OSError,
    ImportError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    StrictDataclassError,
)


def auto_class(objective: str = "causal_lm") -> Any:
    """The `Auto…` class with the head that the objective needs."""
    return getattr(transformers, objective_spec(objective).auto_class)


def architecture_config(
    model: Model, *, vocabulary: int | None, special_tokens: dict[str, int | None] | None = None
) -> PreTrainedConfig:
    """The transformers configuration of a recipe's model; a module from outside has one of its own class.

    Args:
        model: the recipe's section.
        vocabulary: length of the tokenizer, None for an objective without text; a larger `vocab_size` in the recipe is
            kept.
        special_tokens: `bos_token_id`, `eos_token_id`, `pad_token_id` of the tokenizer.

    Raises:
        ModelError: the family is unknown, a value is refused, or the vocabulary does not hold the tokenizer.
    """
    if model.module is not None:
        config = module_config(model, vocabulary=vocabulary, special_tokens=special_tokens)
        _check_vocabulary(config, vocabulary)
        return config
    with _refusing(f"model: transformers refuses this configuration of {model.family!r}", *_REFUSALS):
        if model.pretrained is not None:
            config = pretrained_config(model.pretrained, **{**(special_tokens or {}), **model.config})
            config = _as_family(config, model)
        elif vocabulary is None:
            config = AutoConfig.for_model(model.family, **model.config)
        else:
            config = AutoConfig.for_model(
                model.family, **_with_text(model, {"vocab_size": vocabulary, **(special_tokens or {})})
            )
    _check_vocabulary(config, vocabulary)
    # Where a family has several heads of a kind, transformers looks for the class among these, and fails on None.
    config.architectures = config.architectures or []
    config.use_cache = False
    if hasattr(config, "image_seq_length"):
        config.image_seq_length = image_tokens(Image(), config)
    _set_dropout(config, model.dropout)
    return config


def _as_family(config: PreTrainedConfig, model: Model) -> PreTrainedConfig:
    """The configuration of a family whose body is that of the pretrained one: what both have is kept.

    A masked autoencoder (`vit_mae`) so becomes a ViT; its decoder is left.
    """
    if config.model_type == model.family:
        return config
    known = AutoConfig.for_model(model.family).to_dict().keys() - {"model_type", "architectures"}
    shared = {name: value for name, value in config.to_dict().items() if name in known}
    return AutoConfig.for_model(model.family, **{**shared, **model.config})


def _with_text(model: Model, text: Mapping[str, int | None]) -> dict[str, object]:
    """The recipe's fields over those of the tokenizer, which belong to the part of the model that reads text."""
    defaults = AutoConfig.for_model(model.family)
    if "text_config" in defaults.sub_configs:
        own = model.text_config if "text_config" in model.config else {}
        if hasattr(defaults, "image_token_index") and "image_token_index" not in model.config:
            # The tokenizer knows no such token; the id behind its last stands for a part of an image.
            size = text["vocab_size"]
            assert size is not None, "a model that reads text has a tokenizer"
            image = {"image_token_index": size}
            text = {**text, "vocab_size": size + 1}
            return {**image, **model.config, "text_config": {**text, **own}}
        return {**model.config, "text_config": {**text, **own}}
    return {**_decoder(model, text), **text, **model.config}


def _decoder(model: Model, text: Mapping[str, int | None]) -> dict[str, object]:
    """Ids of the tokenizer where an encoder–decoder's configuration defaults to those of another.

    The decoder starts to write after a token of its own, by default the first token of a text. None is forbidden at the
    beginning (Whisper: a space, the end) or forced at the end (BART, Marian), which would be ids of their vocabularies.
    """
    defaults = AutoConfig.for_model(model.family)
    if not defaults.is_encoder_decoder:
        return {}
    start = next((text[name] for name in ("bos_token_id", "pad_token_id") if text.get(name) is not None), None)
    own: dict[str, object] = {"decoder_start_token_id": start} if start is not None else {}
    return own | {name: None for name in ("begin_suppress_tokens", "forced_eos_token_id") if hasattr(defaults, name)}


def _check_vocabulary(config: PreTrainedConfig, vocabulary: int | None) -> None:
    embeddings = getattr(config.get_text_config(), "vocab_size", None)
    if vocabulary is not None and embeddings is not None and embeddings < vocabulary:
        raise ModelError(
            f"model.config.vocab_size is {embeddings}, but the tokenizer has {vocabulary} entries; "
            "leave it out, or give at least that many."
        )


def _set_dropout(config: PreTrainedConfig, probability: float | None) -> None:
    """Every family has its own names (resid_pdrop, attention_dropout, …); all of them hold a probability."""
    if probability is None:
        return
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for key, value in part.to_dict().items() if part is not None else ():
            if ("dropout" in key or "pdrop" in key) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(part, key, probability)


def construct(model: Model, config: PreTrainedConfig, objective: str = "causal_lm") -> Any:
    """The module in fp32, with whatever weights its constructor gives.

    Raises:
        ModelError: the attention implementation is not available, or a module from outside cannot be made.
    """
    if isinstance(config, ModuleConfig):
        return make_module(model, config)
    with _refusing(f"model: cannot build {model.family!r}", *_REFUSALS):
        built = auto_class(objective).from_config(config, dtype=torch.float32, attn_implementation=model.attention)
    _checkpoint_activations(model, built)
    return built


def construct_pretrained(
    model: Model, config: PreTrainedConfig, objective: str = "causal_lm", *, seed: int = 0
) -> Loaded:
    """The module in fp32 with its pretrained weights; what they lack depends on `seed` alone.

    Raises:
        ModelError: the attention implementation or the weights are not available, or are of another model.
    """
    assert model.pretrained is not None
    if isinstance(config, ModuleConfig):
        return _module_with_weights(model, config, seed)
    with _refusing(f"model: cannot load {model.pretrained!r} as {model.family!r}", *_REFUSALS):
        loaded = load_weights(
            auto_class(objective), model.pretrained, config, seed=seed, attn_implementation=model.attention
        )
    _checkpoint_activations(model, loaded.model)
    return loaded


def _module_with_weights(model: Model, config: ModuleConfig, seed: int) -> Loaded:
    folder = Path(str(place(str(model.pretrained))["pretrained_model_name_or_path"]))
    torch.manual_seed(seed)
    built = make_module(model, config)
    new, unused = load_module_weights(built, folder)
    return Loaded(built, tuple(sorted(new)), tuple(sorted(unused)))


def _checkpoint_activations(model: Model, built: PreTrainedModel) -> None:
    if model.activation_checkpointing:
        # The non-reentrant form keeps the random state of dropout and works with torch.compile and ZeRO-3.
        built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def skeleton(model: Model, config: PreTrainedConfig, objective: str = "causal_lm") -> Any:
    """The module on the meta device: shapes and names without any memory.

    Raises:
        ModelError: the configuration describes no model.
    """
    if isinstance(config, ModuleConfig):
        with meta_device(str(model.module)):
            return make_module(model, config)
    # Nothing is allocated here, so a RuntimeError is about a shape and not about memory.
    refusals = (*_REFUSALS, RuntimeError)
    what = f"model: transformers refuses this configuration of {model.family!r}"
    with _refusing(what, *refusals), torch.device("meta"):
        return auto_class(objective).from_config(config)


def module_skeleton(model: Model, config: PreTrainedConfig) -> OutsideModel | None:
    """`skeleton` of a module from outside; None of a family.

    Raises:
        ModelError: it cannot be made.
    """
    return skeleton(model, config) if isinstance(config, ModuleConfig) else None


@contextmanager
def _refusing(what: str, *refusals: type[Exception]) -> Iterator[None]:
    """Turn what transformers raises into a ModelError of one short paragraph."""
    try:
        yield
    except refusals as error:
        # The text of a KeyError is the key alone.
        text = f"it does not know {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ModelError(f"{what}: {textwrap.shorten(text, 400, placeholder=' …')}") from error


def special_token_ids(tokenizer: Any) -> dict[str, int | None]:
    """Ids that the configuration of a model shares with its tokenizer."""
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
