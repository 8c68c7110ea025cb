"""Kernels of liger-kernel (`model.kernels: liger`) in place of PyTorch's operations, on GPUs."""

from __future__ import annotations

import torch
from torch import nn

from shardyard.errors import HardwareError, ModelError
from shardyard.extras import require

# The objective computes the loss, from logits.
_CHOSEN = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(model: nn.Module, family: str, device: torch.device) -> None:
    """Replace norms, rotary positions and gated layers of a model of `transformers`, in place.

    Raises:
        HardwareError: ranks compute on CPUs.
        UsageError: liger-kernel is not installed.
        ModelError: it has no kernels for the family.
    """
    on_gpu = device.type == "cuda"
    if not on_gpu:
        raise HardwareError("model.kernels is liger, whose kernels run on GPUs only; set it to none to train on CPUs.")
    require("kernels", "model.kernels: liger", "liger_kernel", "triton")
    # With it transformers imports its trainer and peft.
    from transformers.integrations.liger import apply_liger_kernel

    before = _forwards(model)
    apply_liger_kernel(model, dict(_CHOSEN))
    if _forwards(model) == before:
        raise ModelError(f"liger-kernel has no kernels for the family {family}; set model.kernels to none.")


def _forwards(model: nn.Module) -> list[object]:
    """What each module computes: the function of its class, or its own."""
    return [getattr(module.forward, "__func__", module.forward) for module in model.modules()]
