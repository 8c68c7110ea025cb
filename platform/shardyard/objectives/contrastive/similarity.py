"""How a dual encoder of transformers compares embeddings: its learned scale and bias, and the loss of its paper."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shardyard.errors import ModelError
from shardyard.objectives.losses import info_nce, sigmoid_pairs

LARGEST_SCALE = 100.0
# Jia et al. 2021 (Scaling Up Visual and Vision-Language Representation Learning With Noisy Text), section 5.1.
_SMOOTHING = {"align": 0.1}


@dataclass(frozen=True)
class Similarity:
    """The logit of a pair is `scale` · cosine + `bias`; both are scalars in fp32.

    text_scale: of a text that is compared with images, where the model learns one of its own (CLAP).
    bias: of models that decide about each pair by itself (SigLIP); None for those that choose among all (CLIP).
    smoothing: of the labels, for those that choose among all.
    """

    scale: Tensor
    bias: Tensor | None = None
    smoothing: float = 0.0
    text_scale: Tensor | None = None

    def cpu(self) -> Similarity:
        """On the CPU, as it is collected."""
        bias, text_scale = (None if one is None else one.cpu() for one in (self.bias, self.text_scale))
        return replace(self, scale=self.scale.cpu(), bias=bias, text_scale=text_scale)

    def loss(self, images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, first: int = 0) -> Tensor:
        """The sum over rows, in nats: the mean cross-entropy of both directions, or the sigmoid loss of all pairs.

        Args:
            images, texts: [B, D], of length 1; rows of this rank.
            all_images, all_texts: [G, D], of all ranks.
            first: index of this rank's first row among all.
        """
        if self.bias is not None:
            return sigmoid_pairs(texts, all_images, self.scale, self.bias, first)
        to_text = info_nce(images, all_texts, self.scale, first, label_smoothing=self.smoothing)
        text_scale = self.scale if self.text_scale is None else self.text_scale
        to_image = info_nce(texts, all_images, text_scale, first, label_smoothing=self.smoothing)
        return (to_text + to_image) / 2


def similarity_of(model: Any) -> Similarity:
    """The similarity that a model has learned so far.

    The scale of CLIP is limited to 100, as in the paper, but here it is clamped when the loss is computed: beyond the
    limit its gradient is zero and the parameter stays as it is. The paper clips the parameter itself after each step.
    Models with a temperature (ALIGN) or a bias (SigLIP) have no limit in their papers.

    Raises:
        ModelError: the model has none of the parameters that the dual encoders of transformers have.
    """
    inner = getattr(model, "module", model)
    if (temperature := getattr(inner, "temperature", None)) is not None:
        return Similarity(1 / _scalar(temperature), smoothing=_SMOOTHING.get(inner.config.model_type, 0.0))
    if (own := getattr(inner, "logit_scale_a", None)) is not None:
        scales = (_scalar(one).exp().clamp(max=LARGEST_SCALE) for one in (own, inner.logit_scale_t))
        return Similarity(next(scales), text_scale=next(scales))
    if (logarithm := getattr(inner, "logit_scale", None)) is None:
        raise ModelError(
            f"{type(inner).__name__} has no logit_scale and no temperature, by which contrastive compares embeddings."
        )
    if (bias := getattr(inner, "logit_bias", None)) is not None:
        return Similarity(_scalar(logarithm).exp(), _scalar(bias))
    return Similarity(_scalar(logarithm).exp().clamp(max=LARGEST_SCALE))


def _scalar(parameter: torch.Tensor) -> Tensor:
    return parameter.float().reshape(())
