"""Workarounds for transformers and peft, and their private names; tests tell when each is no longer needed.

Seen in transformers 5.19 to 5.22 and peft 0.21; `tests/unit/models/test_transformers_quirks.py` fails where a newer
version no longer needs one of these, or has lost a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

# What a model says of itself.


def attention_of(model: Any) -> str:
    """Which implementation of attention a model computes with, such as `sdpa`; "" where it does not say."""
    config = getattr(getattr(model, "module", model), "config", None)
    return str(getattr(config, "_attn_implementation", ""))


def recorded_routers(module: nn.Module) -> Iterator[tuple[type, int]]:
    """The classes of routers that a model of transformers names, each with the place of its logits in its output."""
    recorded = getattr(type(module), "_can_record_outputs", None) or {}
    entries = recorded.get("router_logits", []) if isinstance(recorded, dict) else []
    for entry in entries if isinstance(entries, list) else [entries]:
        yield cast(type, getattr(entry, "target_class", entry)), int(getattr(entry, "index", 1))


# Initialisation.


def forget_initialisation(model: nn.Module) -> None:
    """Take the constructor's mark of what it has initialised away: rules leave a module that bears it as it is."""
    for module in model.modules():
        module._is_hf_initialized = False  # type: ignore[assignment]


def initialisation_rule(model: PreTrainedModel) -> Callable[[nn.Module], None]:
    """By which a family initialises any one of its modules. The public `init_weights` does all of them, from one stream
    of random numbers."""
    return model._init_weights  # type: ignore[no-any-return]


def place_patches(module: nn.Module) -> None:
    """Give the decoder of a masked autoencoder its fixed table of positions.

    The rule of `vit_mae` sets it to zero after the constructor has computed it, so that a model from scratch could not
    tell one hidden patch from another (transformers 5.22).
    """
    if type(module).__name__ == "ViTMAEDecoder":
        decoder: Any = module
        decoder.initialize_weights(decoder.decoder_pos_embed.shape[1] - 1)


# Adapters.


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Compute without adapters inside.

    The public `enable_adapters` also changes what requires a gradient, which ZeRO has taken note of.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer  # Half a second, which only adapters need.

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
