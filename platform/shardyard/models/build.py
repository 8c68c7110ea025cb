"""Builds a `transformers` model from a recipe's `model` section."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from shardyard.errors import ModelError
from shardyard.models.checkpointing import checkpoint_activations
from shardyard.models.fused import fuse_activations
from shardyard.models.outside import (
    ModuleConfig,
    OutsideModel,
    load_module_weights,
    make_module,
    meta_device,
    module_config,
)
from shardyard.models.pretrained import Loaded, load_weights, place, pretrained_config
from shardyard.models.slices.load import load_in_slices
from shardyard.models.slices.quirks import WholeNeededError
from shardyard.models.sound import TEXT_PARTS, settle_sound
from shardyard.models.special_ids import accepted_ids, make_room_for_padding
from shardyard.models.vocabulary import padded, resize, rows_of, set_rows
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.image_tokens import image_tokens, sees_with_pixtral
from shardyard.recipe.schema import Image, Model

# Exceptions that transformers raises for values it cannot build a model from, depending on where it fails.
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

_WHISPER_START = "<|startoftranscript|>"


def auto_class(objective: str = "causal_lm", family: str | None = None) -> Any:
    """The `Auto…` class with the head that the objective needs, for a model type."""
    return getattr(transformers, objective_spec(objective).auto_class_of(family))


def architecture_config(
    model: Model,
    *,
    vocabulary: int | None,
    special_tokens: dict[str, int | None] | None = None,
    placeholders: Mapping[str, int] | None = None,
) -> PreTrainedConfig:
    """The transformers configuration of a recipe's model; a `ModuleConfig` for a custom module.

    Args:
        model: the recipe's section.
        vocabulary: length of the tokenizer, None for an objective without text. A larger `vocab_size` is kept; a
            pretrained model gets as many as the tokenizer needs, padded to `vocabulary_multiple`.
        special_tokens: `bos_token_id`, `eos_token_id`, `pad_token_id` of the tokenizer.
        placeholders: name → id of the tokens that stand for pictures, such as `image_token`; None if the tokenizer has
            none.

    Raises:
        ModelError: the family is unknown, a value is refused, or the vocabulary does not hold the tokenizer.
    """
    if model.module is not None:
        rows = None if vocabulary is None else padded(vocabulary, model.vocabulary_multiple)
        config = module_config(model, vocabulary=rows, special_tokens=special_tokens)
        _check_vocabulary(config, vocabulary)
        return config
    with _refusing(f"model: transformers refuses this configuration of {model.family!r}", *_REFUSALS):
        if model.pretrained is not None:
            own_ids = accepted_ids(_text_defaults(model), special_tokens or {})
            overrides = {**own_ids, **model.config, **_named_classes(model)}
            config = pretrained_config(model.pretrained, **overrides)
            config = _as_family(config, model)
        elif vocabulary is None:
            config = AutoConfig.for_model(model.family, **model.config, **_named_classes(model))
        else:
            text = _with_text(model, {"vocab_size": vocabulary, **(special_tokens or {})}, placeholders)
            config = AutoConfig.for_model(model.family, **text, **_named_classes(model))
            make_room_for_padding(config)
    if vocabulary is not None and "vocab_size" not in model.text_config and (own := rows_of(config)) is not None:
        set_rows(config, padded(max(own, vocabulary), model.vocabulary_multiple))
    _check_vocabulary(config, vocabulary)
    # Where a family has several heads of a kind, transformers looks for the class among these, and fails on None.
    config.architectures = config.architectures or []
    config.use_cache = False
    own_strategy = hasattr(config, "vision_feature_select_strategy")
    if hasattr(config, "image_seq_length") and own_strategy and placeholders is None:
        config.image_seq_length = image_tokens(Image(), config)
    _set_dropout(config, model)
    settle_sound(config, model)
    return config


def _as_family(config: PreTrainedConfig, model: Model) -> PreTrainedConfig:
    """The configuration of a family with the same body as the pretrained one; keeps the fields that both have.

    This turns a masked autoencoder (`vit_mae`) into a ViT and drops its decoder.
    """
    if config.model_type == model.family:
        return config
    known = AutoConfig.for_model(model.family).to_dict().keys() - {"model_type", "architectures"}
    shared = {name: value for name, value in config.to_dict().items() if name in known}
    return AutoConfig.for_model(model.family, **{**shared, **model.config})


def _named_classes(model: Model) -> dict[str, object]:
    """The names of the classes, under which pipelines of transformers show predictions."""
    if not model.labels:
        return {}
    names = dict(enumerate(model.labels))
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


def _with_text(
    model: Model, text: Mapping[str, int | None], placeholders: Mapping[str, int] | None
) -> dict[str, object]:
    """The tokenizer's fields, overridden by the recipe's; they belong to the part of the model that reads text."""
    text = accepted_ids(_text_defaults(model), text)
    defaults = AutoConfig.for_model(model.family)
    if "text_config" in defaults.sub_configs:
        own = model.text_config if "text_config" in model.config else {}
        if placeholders is not None:
            fields = {**_placeholder_fields(defaults, placeholders), **model.config, "text_config": {**text, **own}}
            # Pixtral's encoder has no class token that the default could drop.
            return (
                {"vision_feature_select_strategy": "full", **fields}
                if sees_with_pixtral(model.family, model.config)
                else fields
            )
        if hasattr(defaults, "image_token_index") and "image_token_index" not in model.config:
            # The tokenizer has no such token; the id after its last one stands for a part of an image.
            size = text["vocab_size"]
            assert size is not None, "a model that reads text has a tokenizer"
            image = {"image_token_index": size}
            text = {**text, "vocab_size": size + 1}
            return {**image, **model.config, "text_config": {**text, **own}}
        return {**model.config, "text_config": {**text, **own}}
    if hasattr(defaults, "ctc_loss_reduction"):
        # The blank of CTC is the padding token, or else the end of a text.
        text = {
            "pad_token_id": text.get("eos_token_id"),
            **{name: id_ for name, id_ in text.items() if id_ is not None},
        }
    made: dict[str, object] = {**_decoder(model, text), **text, **model.config}
    if (part := TEXT_PARTS.get(model.family)) is not None:
        inner = model.config.get(part)
        made[part] = {**text, **(inner if isinstance(inner, dict) else {})}
    return made


def _placeholder_fields(defaults: PreTrainedConfig, placeholders: Mapping[str, int]) -> dict[str, object]:
    """The fields of a family's configuration that hold ids of placeholders: `image_token_id`, `boi_token_index`, …"""
    names = [*defaults.to_dict(), *defaults.attribute_map]
    ids = {f"{name}_{suffix}": token for name, token in placeholders.items() for suffix in ("id", "index")}
    # A family knows one of the two names as an attribute of the other.
    found = {defaults.attribute_map.get(name, name): ids[name] for name in names if name in ids}
    return dict(found)


def _text_defaults(model: Model) -> PreTrainedConfig:
    """A configuration of the family with its defaults; of its part that reads text, if it has several."""
    defaults = AutoConfig.for_model(model.family)
    return getattr(defaults, TEXT_PARTS.get(model.family, "text_config"), None) or defaults


def _decoder(model: Model, text: Mapping[str, int | None]) -> dict[str, object]:
    """Overrides for token ids of an encoder–decoder, whose configuration defaults to ids of another tokenizer.

    The decoder's start token defaults to the first token of a text. No token is suppressed at the beginning (Whisper: a
    space, the end) or forced at the end (BART, Marian), because the defaults are ids of other vocabularies.
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


def _set_dropout(config: PreTrainedConfig, model: Model) -> None:
    """Set every dropout probability; each family has its own field names (resid_pdrop, attention_dropout, …)."""
    if model.dropout is None:
        return
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for key, value in part.to_dict().items() if part is not None else ():
            if ("dropout" in key or "pdrop" in key) and isinstance(value, int | float) and not isinstance(value, bool):
                _set_probability(part, key, model)


def _set_probability(config: PreTrainedConfig, key: str, model: Model) -> None:
    """Set one probability; some families declare theirs as whole numbers (MPT: attn_pdrop)."""
    probability = model.dropout
    assert probability is not None, "checked by the caller"
    try:
        setattr(config, key, probability)
    except StrictDataclassError as error:
        if not float(probability).is_integer():
            raise ModelError(
                f"model.dropout is {probability}, but {model.family} accepts only whole numbers for {key}; leave "
                "model.dropout out, and set the other dropouts in model.config."
            ) from error
        setattr(config, key, int(probability))


def construct(model: Model, config: PreTrainedConfig, objective: str = "causal_lm") -> Any:
    """The module in fp32, with the weights that its constructor sets.

    Raises:
        ModelError: the attention implementation is not available, or a custom module cannot be constructed.
    """
    if isinstance(config, ModuleConfig):
        return make_module(model, config)
    with _refusing(f"model: cannot build {model.family!r}", *_REFUSALS):
        head = auto_class(objective, model.family)
        built = head.from_config(config, dtype=torch.float32, attn_implementation=model.attention)
    fuse_activations(built)
    checkpoint_activations(model, built)
    return built


def construct_pretrained(
    model: Model, config: PreTrainedConfig, objective: str = "causal_lm", *, seed: int = 0
) -> Loaded:
    """The module in fp32 with its pretrained weights; parameters missing from them depend only on `seed`.

    Raises:
        ModelError: the attention implementation or the weights are not available, or the weights are of another model.
    """
    assert model.pretrained is not None
    if isinstance(config, ModuleConfig):
        return _module_with_weights(model, config, seed)
    stored, rows = _as_stored(model, config)
    with _refusing(f"model: cannot load {model.pretrained!r} as {model.family!r}", *_REFUSALS):
        head = auto_class(objective, model.family)
        loaded = load_weights(head, model.pretrained, stored, seed=seed, attn_implementation=model.attention)
    if rows is not None:
        loaded = replace(loaded, resized=resize(loaded.model, rows, seed=seed))
    fuse_activations(loaded.model)
    checkpoint_activations(model, loaded.model)
    return loaded


def construct_in_slices(
    model: Model, config: PreTrainedConfig, objective: str = "causal_lm", *, seed: int = 0
) -> Loaded:
    """`construct_pretrained` without reading the weights: `sources` of the result reads them.

    Raises:
        WholeNeededError: they cannot be read in slices.
        ModelError: as `construct_pretrained`.
    """
    assert model.pretrained is not None
    if isinstance(config, ModuleConfig):
        raise WholeNeededError("a module of its own code is built whole")
    stored, rows = _as_stored(model, config)
    with _refusing(f"model: cannot load {model.pretrained!r} as {model.family!r}", *_REFUSALS):
        head = auto_class(objective, model.family)
        loaded = load_in_slices(
            head, model.pretrained, stored, seed=seed, rows=rows, attn_implementation=model.attention
        )
    fuse_activations(loaded.model)
    checkpoint_activations(model, loaded.model)
    return loaded


def _as_stored(model: Model, config: PreTrainedConfig) -> tuple[PreTrainedConfig, int | None]:
    """The configuration with the embeddings of the stored weights, and the rows that they get; None if they fit."""
    own, rows = own_rows(model), rows_of(config)
    stored = copy.deepcopy(config)
    if own is None or rows is None or own == rows:
        return stored, None
    set_rows(stored, own)
    return stored, rows


def own_rows(model: Model) -> int | None:
    """Rows of the embeddings of the pretrained weights; None if there are none, or they read no text."""
    if model.pretrained is None or model.module is not None:
        return None
    return rows_of(_as_family(pretrained_config(model.pretrained), model))


def _module_with_weights(model: Model, config: ModuleConfig, seed: int) -> Loaded:
    folder = Path(str(place(str(model.pretrained))["pretrained_model_name_or_path"]))
    torch.manual_seed(seed)
    built = make_module(model, config)
    new, unused = load_module_weights(built, folder)
    return Loaded(built, tuple(sorted(new)), tuple(sorted(unused)))


def skeleton(model: Model, config: PreTrainedConfig, objective: str = "causal_lm") -> Any:
    """The module on the meta device: shapes and names, without allocating memory.

    Raises:
        ModelError: the configuration describes no model.
    """
    if isinstance(config, ModuleConfig):
        with meta_device(str(model.module)):
            return make_module(model, config)
    # Nothing is allocated here, so a RuntimeError means a wrong shape, not a lack of memory.
    refusals = (*_REFUSALS, RuntimeError)
    what = f"model: transformers refuses this configuration of {model.family!r}"
    with _refusing(what, *refusals), torch.device("meta"):
        # Configurations of saved weights name their number format, which is not what bytes are counted in.
        built = auto_class(objective, config.model_type).from_config(config, dtype=torch.float32)
    fuse_activations(built)
    return built


def module_skeleton(model: Model, config: PreTrainedConfig) -> OutsideModel | None:
    """`skeleton` of a custom module; None for a transformers family.

    Raises:
        ModelError: the module cannot be constructed.
    """
    return skeleton(model, config) if isinstance(config, ModuleConfig) else None


@contextmanager
def _refusing(what: str, *refusals: type[Exception]) -> Iterator[None]:
    """Convert an exception from transformers into a ModelError with one short paragraph."""
    try:
        yield
    except refusals as error:
        # The text of a KeyError is only the key.
        text = f"it does not know {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ModelError(f"{what}: {textwrap.shorten(text, 400, placeholder=' …')}") from error


def special_token_ids(tokenizer: Any) -> dict[str, int | None]:
    """Ids that the configuration of a model shares with its tokenizer."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # Whisper's texts do not begin with the token that its tokenizer calls bos.
    start = getattr(tokenizer, "added_tokens_encoder", {}).get(_WHISPER_START)
    return ids if start is None else {**ids, "decoder_start_token_id": start}
