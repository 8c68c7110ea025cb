"""Weights in 8-bit integers with one scale for each row, as LLM.int8() stores them.

Dettmers et al. 2022 (LLM.int8()), section 2.1, absmax quantisation by rows. Only weights are quantised: inputs keep
their precision, so no outliers have to be told apart.

    O: outputs, I: inputs
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [O, I] (int8) and scales [O · 4] (uint8) of a matrix.

    The scale of a row is its largest absolute value in fp32. It is stored as bytes, so that changing a module's
    precision does not round it.
    """
    rows = weight.detach().float()
    scales = rows.abs().amax(1)
    codes = torch.round(rows * (127 / torch.where(scales > 0, scales, 1))[:, None]).to(torch.int8)
    return codes, scales.view(torch.uint8)


def dequantize(codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `quantize`: a tensor of `shape` in fp32."""
    return (codes.float() * (scales.view(torch.float32) / 127)[:, None]).view(shape)
