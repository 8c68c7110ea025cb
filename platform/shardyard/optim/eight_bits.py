"""AdamW with states in 8 bits, by bitsandbytes: one byte for each number, and a scale in fp32 for each 256 of them.

Dettmers et al. 2022 (8-bit Optimizers via Block-wise Quantization). Under ZeRO the blocks are those of a rank's flat
share of the weights, without ZeRO those of each weight; there, weights of fewer than 4096 numbers keep states in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from shardyard.errors import HardwareError
from shardyard.extras import require
from shardyard.recipe.schema import Optimizer as Settings
from shardyard.recipe.sections.eight_bits import EIGHT_BITS, NO_PAGES_ON_CPU, PAGED

_STATES = ("state1", "state2")


def adamw_8bit(groups: Any, settings: Settings, device: torch.device) -> Optimizer:
    """The optimizer of `optimizer.name: adamw_8bit`, or of `paged_adamw_8bit`.

    Args:
        groups: parameter groups.
        device: on which ranks compute.

    Raises:
        UsageError: bitsandbytes is not installed.
        HardwareError: states in pages are asked for where there is no GPU.
    """
    assert settings.name in EIGHT_BITS, settings.name
    require("quantize", f"optimizer.name: {settings.name}", "bitsandbytes")
    paged = settings.name in PAGED
    if paged and device.type == "cpu":
        raise HardwareError(f"optimizer.name is {settings.name}: {NO_PAGES_ON_CPU}.")
    from bitsandbytes.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(
        groups,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        is_paged=paged,
    )
    if paged:
        _stay_in_pages(optimizer)
    return optimizer


def _stay_in_pages(optimizer: Any) -> None:
    """Put loaded states into pages again, which `load_state_dict` moves to the memory of the device."""
    plain = optimizer.load_state_dict

    def load_state_dict(state: Any, *given: Any) -> None:
        plain(state, *given)
        for parameter, own in optimizer.state.items():
            for key in _STATES:
                if key in own:
                    pages = optimizer.get_state_buffer(parameter, dtype=own[key].dtype)
                    own[key] = pages.copy_(own[key])

    optimizer.load_state_dict = load_state_dict
