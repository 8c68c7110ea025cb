"""Weights in 4 bits: NormalFloat (NF4) with one scale for each block of 64 weights.

Dettmers et al. 2023 (QLoRA: Efficient Finetuning of Quantized LLMs), section 3 and appendix E. Scales are kept in fp32
(no double quantisation), so a weight takes 4.5 bits.

    N: weights of a layer, padded to whole blocks; O: outputs, I: inputs
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64
_HAS_KERNELS = importlib.util.find_spec("bitsandbytes") is not None
# Quantiles of the normal distribution scaled to [-1, 1], with an exact zero (appendix E).
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N / 2] (two a byte, the first in the high bits) and scales [N / 64 · 4], both uint8, of a tensor.

    The scale of a block is its largest absolute value in fp32. It is stored as bytes, so that changing a module's
    precision does not round it.
    """
    flat = weight.detach().float().flatten()
    blocks = functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)  # [N / 64, 64]
    scales = blocks.abs().amax(1)
    unit = blocks / torch.where(scales > 0, scales, 1)[:, None]
    levels = torch.tensor(LEVELS, device=weight.device)
    # The nearest level changes halfway between two levels.
    codes = torch.bucketize(unit, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return (codes[:, 0] << 4) | codes[:, 1], scales.view(torch.uint8)


_KEPT: dict[torch.device, Tensor] = {}


def _levels(device: torch.device) -> Tensor:
    """`LEVELS` on a device, copied there only once, because the host waits for such a copy."""
    if device not in _KEPT:
        with torch.inference_mode(False):
            levels = torch.tensor(LEVELS, device=device)
        if type(levels) is not Tensor:  # one without values, of a tracer
            return levels
        _KEPT[device] = levels
    return _KEPT[device]


def dequantize(codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `quantize`: a tensor of `shape` in fp32; on a GPU by bitsandbytes, if it is installed."""
    if codes.is_cuda and _HAS_KERNELS:
        return dequantize_by_kernel(codes, scales, shape)
    levels = _levels(codes.device)
    pairs = torch.stack([codes >> 4, codes & 15], dim=-1).long()
    blocks = levels[pairs].view(-1, BLOCK) * scales.view(torch.float32)[:, None]
    return blocks.flatten()[: shape.numel()].view(shape)


def dequantize_by_kernel(codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
    """`dequantize` by the kernel of bitsandbytes, which has the same codes and scales."""
    import bitsandbytes.functional as kernels

    state = kernels.QuantState(
        absmax=scales.view(torch.float32),
        shape=shape,
        code=kernels.get_4bit_type("nf4", device=codes.device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.float32,
    )
    padded = -(-shape.numel() // BLOCK) * BLOCK
    if padded != shape.numel():
        state.shape = torch.Size((padded,))
    whole: Tensor = kernels.dequantize_4bit(codes[:, None], state)
    return whole.flatten()[: shape.numel()].view(shape)
