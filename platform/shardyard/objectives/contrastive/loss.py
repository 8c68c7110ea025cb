"""Contrastive language–image pretraining: match images and captions within a batch, in both directions.

Radford et al. 2021 (Learning Transferable Visual Models From Natural Language Supervision), section 2.3.

    B: rows of this rank, G: rows of the global batch, D: size of an embedding, N: held-out pairs
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from shardyard.objectives.base import Measured, Objective, Tensors, as_model
from shardyard.objectives.contrastive.gathering import gather_rows
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import info_nce
from shardyard.objectives.scores import recall_at_k

LARGEST_SCALE = 100.0
RECALLS_AT = (1, 5, 10)
# Number of rows that an evaluation compares with all others at a time: limits memory.
_ROWS_AT_A_TIME = 1024


class Contrastive(Objective):
    """Rows of images with captions (`data/formats/captions.py`).

    Training compares each row with those of all ranks. An evaluation compares all held-out pairs with each other, so
    neither ranks nor micro-batches change its result; chance is ln N for the loss and k / N for recall at k.

    Args:
        group: the data-parallel ranks; None if there is only one.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row: the mean of both directions."""
        return {"loss": batch["input_ids"].shape[0]}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`pixel_values` [B, C, H, W], `input_ids`, `attention_mask` [B, T]. In evaluations, `score` gives the loss."""
        if not model.training:
            return Measured({"loss": torch.zeros(())})
        images, texts, scale = _embed(model, batch)
        # A single collective gathers both sides.
        everything, first = gather_rows(torch.cat([images, texts], dim=-1), self._group)  # [G, 2·D]
        all_images, all_texts = everything.chunk(2, dim=-1)
        return Measured({"loss": contrastive_loss(images, texts, all_images, all_texts, scale, first)})

    def rows_to_collect(self, rows: int) -> int:
        """All rows, because the difficulty depends on the number of pairs."""
        return rows

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """Both embeddings of each row, concatenated [2·D], and the scale."""
        images, texts, scale = _embed(model, batch)
        pairs = torch.cat([images, texts], dim=-1).cpu().numpy()
        return [(pair, float(scale)) for pair in pairs]

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Recall in both directions, and the loss with all pairs as one batch."""
        pairs = torch.from_numpy(np.stack([pair for pair, _ in collected]))
        images, texts = pairs.chunk(2, dim=-1)  # [N, D] each
        scale = torch.tensor(collected[0][1])
        scores = {"loss": _full_batch_loss(images, texts, scale)}
        for k in RECALLS_AT:
            scores[f"image_to_text_recall_at_{k}"] = recall_at_k(images, texts, k)
            scores[f"text_to_image_recall_at_{k}"] = recall_at_k(texts, images, k)
        return scores


def contrastive_loss(
    images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor, first: int = 0
) -> Tensor:
    """Sum over rows of the mean cross-entropy of both directions, in nats.

    Args:
        images, texts: [B, D], of length 1; rows of this rank.
        all_images, all_texts: [G, D], of all ranks.
        scale: factor of the cosines, the inverse of the temperature.
        first: index of this rank's first row among all.
    """
    to_text = info_nce(images, all_texts, scale, first)
    to_image = info_nce(texts, all_images, scale, first)
    return (to_text + to_image) / 2


def _embed(model: Any, batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of images and of texts, [B, D] each, of length 1 in fp32, and the scale.

    The scale is limited to 100, as in the paper, but here it is clamped when the loss is computed: beyond the limit its
    gradient is zero and the parameter stays as it is. The paper clips the parameter itself after each step.
    """
    output = model(**{**batch, "pixel_values": as_model(model, batch["pixel_values"])})
    inner = getattr(model, "module", model)
    scale = inner.logit_scale.float().reshape(()).exp().clamp(max=LARGEST_SCALE)
    return output.image_embeds.float(), output.text_embeds.float(), scale


def _full_batch_loss(images: Tensor, texts: Tensor, scale: Tensor) -> float:
    total = 0.0
    for first in range(0, len(images), _ROWS_AT_A_TIME):
        part = slice(first, first + _ROWS_AT_A_TIME)
        total += float(contrastive_loss(images[part], texts[part], images, texts, scale, first))
    return total / len(images)


def make(inputs: ObjectiveInputs) -> Contrastive:
    """Create the objective, which has no settings."""
    return Contrastive(inputs.data_group)
