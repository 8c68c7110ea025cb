"""Contrastive language–image pretraining: match images and captions within a batch.

Radford et al. 2021 (Learning Transferable Visual Models From Natural Language Supervision), section 2.3; Zhai et al.
2023 (Sigmoid Loss for Language Image Pre-Training) for models with a bias. The model decides which (`similarity.py`).

    B: rows of this rank, G: rows of the global batch, D: size of an embedding, N: held-out pairs
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from shardyard.objectives.base import Measured, Objective, Tensors, as_model
from shardyard.objectives.contrastive.gathering import gather_rows
from shardyard.objectives.contrastive.similarity import Similarity, similarity_of
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.scores import recall_at_k

RECALLS_AT = (1, 5, 10)
# Number of rows that an evaluation compares with all others at a time: limits memory.
_ROWS_AT_A_TIME = 1024


def recalls(matched: str) -> frozenset[str]:
    """The names of the recalls of both directions."""
    ways = (f"{matched}_to_text", f"text_to_{matched}")
    return frozenset(f"{way}_recall_at_{k}" for way in ways for k in RECALLS_AT)


class Pair(NamedTuple):
    """What an evaluation collects of a row: both embeddings, concatenated [2·D], and how the model compares them."""

    embeddings: np.ndarray[Any, Any]
    similarity: Similarity


class Contrastive(Objective):
    """Rows of images with captions (`data/formats/captions.py`).

    Training compares each row with those of all ranks. An evaluation compares all held-out pairs with each other, so
    neither ranks nor micro-batches change its result; chance is ln N for the loss and k / N for recall at k.
    `matched` names what texts are matched with, in the model's output and in the metrics.

    Args:
        group: the data-parallel ranks; None if there is only one.
    """

    matched = "image"

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row: the mean of both directions."""
        return {"loss": batch["input_ids"].shape[0]}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`pixel_values` [B, C, H, W] or what else is matched with texts, `input_ids` [B, T], and what else the model
        reads. In evaluations, `score` gives the loss."""
        if not model.training:
            return Measured({"loss": torch.zeros(())})
        images, texts = self._embed(model, batch)
        # A single collective gathers both sides.
        everything, first = gather_rows(torch.cat([images, texts], dim=-1), self._group)  # [G, 2·D]
        all_images, all_texts = everything.chunk(2, dim=-1)
        return Measured({"loss": similarity_of(model).loss(images, texts, all_images, all_texts, first)})

    shares_of_rows = recalls("image")

    def rows_to_collect(self, rows: int) -> int:
        """All rows, because the difficulty depends on the number of pairs."""
        return rows

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """A `Pair` of each row."""
        images, texts = self._embed(model, batch)
        similarity = similarity_of(model).cpu()
        return [Pair(pair, similarity) for pair in torch.cat([images, texts], dim=-1).cpu().numpy()]

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Recall in both directions, and the loss with all pairs as one batch."""
        pairs = torch.from_numpy(np.stack([pair.embeddings for pair in collected]))
        images, texts = pairs.chunk(2, dim=-1)  # [N, D] each
        scores = {"loss": _full_batch_loss(images, texts, collected[0].similarity)}
        for k in RECALLS_AT:
            scores[f"{self.matched}_to_text_recall_at_{k}"] = recall_at_k(images, texts, k)
            scores[f"text_to_{self.matched}_recall_at_{k}"] = recall_at_k(texts, images, k)
        return scores

    def _embed(self, model: Any, batch: Tensors) -> tuple[Tensor, Tensor]:
        """Embeddings of images (or recordings) and of texts, [B, D] each, of length 1 in fp32."""
        output = model(
            **{name: as_model(model, one) if one.is_floating_point() else one for name, one in batch.items()}
        )
        return output[f"{self.matched}_embeds"].float(), output.text_embeds.float()


def _full_batch_loss(images: Tensor, texts: Tensor, similarity: Similarity) -> float:
    total = 0.0
    for first in range(0, len(images), _ROWS_AT_A_TIME):
        part = slice(first, first + _ROWS_AT_A_TIME)
        total += float(similarity.loss(images[part], texts[part], images, texts, first))
    return total / len(images)


def make(inputs: ObjectiveInputs) -> Contrastive:
    """Create the objective, which has no settings."""
    return Contrastive(inputs.data_group)
