"""Workarounds for transformers, peft and bitsandbytes, and private names; tests show when each is no longer needed.

Needed for transformers 5.19 to 5.22, peft 0.21 and bitsandbytes 0.50; `tests/unit/models/test_transformers_quirks.py`
fails if a newer version no longer needs one of them or no longer has one of the names.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedModel, masking_utils
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    dot_natural_key,
    revert_weight_conversion,
)

from shardyard.replaced import replaced

# Properties of a model.


def attention_of(model: Any) -> str:
    """The attention implementation that a model uses, such as `sdpa`; "" if the model does not state it."""
    config = getattr(getattr(model, "module", model), "config", None)
    return str(getattr(config, "_attn_implementation", ""))


def first_position(model: Any) -> int:
    """The position id of the first token of a text: 0, but `pad_token_id + 1` in RoBERTa and its descendants, whose
    table of positions has an entry for padding (transformers derives them so only where it is given none)."""
    config = getattr(getattr(model, "module", model), "config", None)
    padding = getattr(config, "pad_token_id", None)
    return padding + 1 if padding is not None and _counts_from_padding(str(getattr(config, "model_type", ""))) else 0


@cache
def _counts_from_padding(family: str) -> bool:
    """Whether the embeddings of a family derive position ids from the ids of tokens; not those of speech and images."""
    if family not in CONFIG_MAPPING:
        return False
    try:
        module = importlib.import_module(CONFIG_MAPPING[family].__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return False
    classes = [one for name, one in vars(module).items() if name.endswith("Embeddings")]
    return any(hasattr(one, "create_position_ids_from_input_ids") for one in classes)


def recorded_routers(module: nn.Module) -> Iterator[tuple[type, int]]:
    """The router classes that a transformers model declares, each with the index of the logits in its output."""
    recorded = getattr(type(module), "_can_record_outputs", None) or {}
    entries = recorded.get("router_logits", []) if isinstance(recorded, dict) else []
    for entry in entries if isinstance(entries, list) else [entries]:
        yield cast(type, getattr(entry, "target_class", entry)), int(getattr(entry, "index", 1))


def positions_of_sound(model: Any, mask: Tensor | None, output: Tensor) -> Tensor:
    """How many positions [B] of `output` [B, S, …] are of a recording and not of its padding.

    Args:
        mask: [B, T], of the model's input; None if the model reads no mask.
    """
    whole = torch.full((output.shape[0],), output.shape[1], dtype=torch.long, device=output.device)
    rule = getattr(getattr(model, "module", model), "_get_feat_extract_output_lengths", None)
    return whole if mask is None or rule is None else torch.minimum(rule(mask.sum(-1)).long(), whole)


# Masks.


@dataclass(frozen=True)
class Masks:
    """What is known of the masks of a micro-batch before it is on the device.

    padded: some position is padding. packed: position ids restart in some row; None without position ids.
    """

    padded: bool
    packed: bool | None


def masks_of(rows: Mapping[str, Tensor]) -> Masks:
    """What a micro-batch on the host says of its masks."""
    padded = any(name.endswith("attention_mask") and not bool(one.all()) for name, one in rows.items())
    positions = rows.get("position_ids")
    return Masks(padded, None if positions is None else bool((positions.diff(dim=-1) != 1).any()))


def unseen_masks(known: Masks) -> AbstractContextManager[None]:
    """Context in which transformers does not look at the values of masks, for which the host would wait.

    It looks whether it could leave a mask out, except while a graph is traced. Where a mask is needed, this says that
    one is traced; where position ids do not restart, that there is nothing to find.
    """
    if known.padded or known.packed:
        return replaced(masking_utils, "is_tracing", lambda tensor=None: True)
    if known.packed is False:
        return replaced(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    return nullcontext()


# Activation checkpointing.


def set_checkpoint_function(model: nn.Module, function: Callable[..., Any]) -> None:
    """Set the function with which the layers of a transformers model store and recompute activations, once that is
    enabled. The public method takes arguments of torch's function, and no other function."""
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            module._gradient_checkpointing_func = function  # type: ignore[assignment]


# Initialisation.


def forget_initialisation(model: nn.Module) -> None:
    """Clear the flag that the constructor sets on initialised modules: rules skip modules that have it."""
    for module in model.modules():
        module._is_hf_initialized = False  # type: ignore[assignment]


def initialisation_rule(model: PreTrainedModel) -> Callable[[nn.Module], None]:
    """The function with which a family initialises any one of its modules. The public `init_weights` initialises all of
    them, from one stream of random numbers."""
    return model._init_weights  # type: ignore[no-any-return]


def place_patches(module: nn.Module) -> None:
    """Restore the fixed position table of a masked autoencoder's decoder.

    The rule of `vit_mae` zeroes it after the constructor has computed it, so a model trained from scratch could not
    distinguish hidden patches (transformers 5.22).
    """
    if type(module).__name__ == "ViTMAEDecoder":
        decoder: Any = module
        decoder.initialize_weights(decoder.decoder_pos_embed.shape[1] - 1)


def begin_sigmoid(module: nn.Module) -> None:
    """Set the scale and the bias of SigLIP as its paper begins: 10 and -10 (Zhai et al. 2023, section 3.2).

    The rule of transformers zeroes both, so that at first each pair counts as likely as not, and all those that do not
    belong together push at once.
    """
    model: Any = module
    if type(module).__name__ == "SiglipModel":
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)


# Saving.


@dataclass(frozen=True)
class SavedTogether:
    """Weights that `save_pretrained` converts together: their names, those in the file (meta), the conversion, and
    whether it only renames."""

    names: tuple[str, ...]
    outputs: Mapping[str, Tensor]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    renames: bool = False


def saved_together(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> list[SavedTogether]:
    """The weights of a model in the groups that transformers converts to the names and layouts of its published files,
    in the order of the files. The public `save_pretrained` needs all weights at once.

    Args:
        weights: without aliases of tied ones, on the meta device.
    """
    ignored = set(model._keys_to_ignore_on_save or ())
    given = {name: tensor for name, tensor in weights.items() if name not in ignored}
    conversions = [
        one for one in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(one, PrefixChange)
    ]
    if not conversions:
        return [SavedTogether((name,), {name: tensor}, dict, renames=True) for name, tensor in given.items()]
    # What `revert_weight_conversion` would look up for each group again.
    model._weight_conversions = conversions
    whole: dict[str, Tensor] = revert_weight_conversion(model, dict(given))
    name_of = {id(tensor): name for name, tensor in given.items()}
    renamed = {name_of[id(tensor)]: new for new, tensor in whole.items() if id(tensor) in name_of}
    converters = [one.reverse_transform() for one in conversions[::-1] if isinstance(one, WeightConverter)]
    changed = _converted(model, {name: given[name] for name in given if name not in renamed}, converters)
    found = [
        SavedTogether((old,), {new: given[old]}, partial(_renamed, old, new), renames=True)
        for old, new in renamed.items()
    ]
    found += changed
    outputs = {name: tensor.shape for one in found for name, tensor in one.outputs.items()}
    if outputs != {name: tensor.shape for name, tensor in whole.items()}:
        # A rename that depends on other names: rare, and then exact only for all weights together.
        return [SavedTogether(tuple(given), whole, partial(revert_weight_conversion, model))]
    place = {name: at for at, name in enumerate(whole)}
    return sorted(found, key=lambda one: min(place[name] for name in one.outputs))


def _converted(model: PreTrainedModel, given: Mapping[str, Tensor], converters: list[Any]) -> list[SavedTogether]:
    """The groups of the weights that are more than renamed."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name in sorted(given, key=dot_natural_key):
        # Only the first converter that knows a name is used.
        targets = (target for one in converters for target, pattern in [one.rename_source_key(name)] if pattern)
        groups.setdefault(next(targets, name), {})[name] = given[name]
    convert = partial(revert_weight_conversion, model)
    return [SavedTogether(tuple(group), convert(dict(group)), convert) for group in groups.values()]


def _renamed(name: str, new: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {new: weights[name]}


# Generation.


def keep_all_fields(found: GenerationConfig) -> None:
    """Unmark a configuration that was derived from a model's: of a marked one, `from_pretrained` reads back only the
    fields that every model has, and not those of Whisper."""
    found._from_model_config = False


@contextmanager
def no_padding_warned_of() -> Iterator[None]:
    """Context in which models on the meta device do not warn of padding: their ids have no values.

    A model without a padding token would not warn either, but the configurations of some families refuse to have none.
    """
    with replaced(PreTrainedModel, "warn_if_padding_and_no_attention_mask", lambda *_: None):
        yield


# Adapters.


def quiet_kernels() -> None:
    """Silence a warning that bitsandbytes 0.50 writes when peft imports it on a CPU with AVX-512.

    It asks for another package, for products of 4-bit weights that Shardyard does not use.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Context in which the model computes without its adapters.

    The public `enable_adapters` also changes which parameters require a gradient, which ZeRO has already recorded.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # Takes half a second; only adapters need it.

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
