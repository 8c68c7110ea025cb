"""Masked images: the pixels of hidden patches are predicted from the visible ones.

He et al. 2021 (Masked Autoencoders Are Scalable Vision Learners), section 3; Xie et al. 2022 (SimMIM: A Simple
Framework for Masked Image Modeling), section 3, for encoders that see a mask token in place of a patch.

    B: rows, C: channels, H, W: height and width, N: patches of an image, P: pixels along a patch, D = P·P·C
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from shardyard.objectives.base import Measured, Objective, Tensors, as_model
from shardyard.objectives.inputs import ObjectiveInputs

# Added to the variance of a patch before taking the square root, as in the paper's code.
_EPSILON = 1e-6


class MaskedImage(Objective):
    """Each hidden patch is one target; its loss is the mean squared error of its pixels."""

    def __init__(self, patch_size: int, mask_ratio: float, *, norm_pix_loss: bool) -> None:
        self._patch_size, self._mask_ratio, self._norm_pix_loss = patch_size, mask_ratio, norm_pix_loss

    def counts(self, batch: Tensors) -> dict[str, float]:
        """The same number of hidden patches in every row."""
        rows, patches = batch["noise"].shape
        return {"loss": rows * (patches - int(patches * (1 - self._mask_ratio)))}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`pixel_values` [B, C, H, W], `noise` [B, N]; the model returns `logits` [B, N, D] and `mask` [B, N]."""
        pixels = batch["pixel_values"]
        output = model(pixel_values=as_model(model, pixels), noise=batch["noise"])
        target = patches(pixels, self._patch_size)
        if self._norm_pix_loss:
            variance, mean = target.var(-1, keepdim=True), target.mean(-1, keepdim=True)
            target = (target - mean) / (variance + _EPSILON).sqrt()
        errors = (output.logits.float() - target).square().mean(-1)  # [B, N]
        return Measured({"loss": (errors * output.mask).sum()})


def patches(pixels: Tensor, size: int) -> Tensor:
    """Split [B, C, H, W] into patches, row by row: [B, N, D], channels last within a patch."""
    rows, channels, height, width = pixels.shape
    grid = pixels.reshape(rows, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(rows, -1, size * size * channels)


class MaskedSquares(Objective):
    """Each hidden patch is one target; its loss is the mean absolute error of its pixels, as in SimMIM."""

    def __init__(self, patch_size: int) -> None:
        self._patch_size = patch_size

    def counts(self, batch: Tensors) -> dict[str, float]:
        """The hidden patches."""
        return {"loss": float(batch["bool_masked_pos"].sum())}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`pixel_values` [B, C, H, W], `bool_masked_pos` [B, N]; the model returns `reconstruction` [B, C, H, W]."""
        pixels, masked = batch["pixel_values"], batch["bool_masked_pos"]
        output = model(pixel_values=as_model(model, pixels), bool_masked_pos=masked)
        errors = (output.reconstruction.float() - pixels).abs()
        return Measured({"loss": (patches(errors, self._patch_size).mean(-1) * masked).sum()})


def make(inputs: ObjectiveInputs) -> Objective:
    """Create the objective from the model's configuration: the loss of a masked autoencoder or of SimMIM."""
    config: Any = inputs.model
    if hasattr(config, "encoder_stride"):
        return MaskedSquares(config.patch_size)
    return MaskedImage(config.patch_size, config.mask_ratio, norm_pix_loss=config.norm_pix_loss)
