"""Embeddings of texts, learned from pairs that belong together (Reimers and Gurevych 2019, Sentence-BERT).

With `info_nce`, the other rows of the global batch are the negatives (Henderson et al. 2017, section 4).

    B: rows of this rank, G: rows of the global batch, D: size of an embedding, T: tokens, N: held-out rows
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional

from shardyard.objectives import losses
from shardyard.objectives.base import Measured, Objective, Tensors
from shardyard.objectives.contrastive.gathering import gather_rows
from shardyard.objectives.embedding.rows import SIDES
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.ranking import mean_reciprocal_rank, ndcg, ranks, recall
from shardyard.recipe.schema import Embedding as Settings

RECALLS_AT = (1, 5, 10)
# Number of queries that an evaluation compares with all texts at a time: limits memory.
_ROWS_AT_A_TIME = 1024


class Vectors(NamedTuple):
    """The vectors of a held-out row [D], and a number for its positive: equal texts have equal numbers."""

    query: npt.NDArray[np.float32]
    positive: npt.NDArray[np.float32]
    negative: npt.NDArray[np.float32] | None
    text: int


class Embedding(Objective):
    """Rows of texts (`rows.py`); each is one target.

    Training compares rows with those of all ranks. An evaluation compares all held-out rows with each other, so neither
    ranks nor micro-batches change its result.

    Args:
        group: the data-parallel ranks; None if there is only one.
    """

    def __init__(self, settings: Settings, group: ProcessGroup | None = None) -> None:
        self._settings, self._group = settings, group

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row."""
        return {"loss": len(batch["query_input_ids"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`query_…`, `positive_…` and perhaps `negative_…` [B, T]. In evaluations, `score` gives the loss."""
        if not model.training:
            return Measured({"loss": torch.zeros(())})
        own = embed(model, batch, self._settings.pooling)
        # A single collective gathers all sides.
        everything, first = gather_rows(torch.cat(own, dim=-1), self._group)  # [G, sides·D]
        return Measured({"loss": self._loss(own, everything.chunk(len(own), dim=-1), first)})

    def _loss(self, own: tuple[Tensor, ...], everything: tuple[Tensor, ...], first: int) -> Tensor:
        settings, keys = self._settings, torch.cat(everything[1:])
        if settings.loss == "triplet":
            return losses.triplet(*own, margin=settings.margin)
        if settings.loss == "margin":
            return losses.in_batch_margin(own[0], keys, margin=settings.margin, first_target=first)
        scale = 1 / settings.temperature
        loss = losses.info_nce(own[0], keys, scale, first)
        if not settings.symmetric:
            return loss
        return (loss + losses.info_nce(own[1], everything[0], scale, first)) / 2

    def rows_to_collect(self, rows: int) -> int:
        """All rows, because the difficulty depends on the number of texts."""
        return rows

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """The vectors of each row."""
        sides = [side.cpu().numpy() for side in embed(model, batch, self._settings.pooling)]
        ids, mask = batch["positive_input_ids"].cpu(), batch["positive_attention_mask"].cpu().bool()
        texts = [_number(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]
        negatives = sides[2] if len(sides) > 2 else [None] * len(texts)
        return [Vectors(*row) for row in zip(sides[0], sides[1], negatives, texts, strict=True)]

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Ranks of the positives among the texts of all rows, and the loss with all rows as one batch."""
        queries, positives = (torch.from_numpy(np.stack([row[side] for row in collected])) for side in (0, 1))
        negatives = [row.negative for row in collected if row.negative is not None]
        everything: tuple[Tensor, ...] = (queries, positives)
        if negatives:
            everything += (torch.from_numpy(np.stack(negatives)),)
        texts = torch.tensor([row.text for row in collected])
        # A negative is never right.
        owners = torch.cat([texts, torch.full((len(negatives),), -1)])
        total, places = 0.0, []
        for first in range(0, len(queries), _ROWS_AT_A_TIME):
            part = slice(first, first + _ROWS_AT_A_TIME)
            total += float(self._loss(tuple(side[part] for side in everything), everything, first))
            similarity = queries[part] @ torch.cat(everything[1:]).T
            places.append(ranks(similarity, texts[part, None] == owners))
        found = torch.cat(places)
        scores = {f"recall_at_{k}": recall(found, k) for k in RECALLS_AT}
        return {"loss": total / len(queries), **scores, "mrr": mean_reciprocal_rank(found), "ndcg_at_10": ndcg(found)}


def embed(model: Any, batch: Tensors, pooling: str) -> tuple[Tensor, ...]:
    """The vectors of each side of a batch, [B, D] each, of length 1 in fp32, by one forward pass."""
    sides = [side for side in SIDES if f"{side}_input_ids" in batch]
    longest = max(batch[f"{side}_input_ids"].shape[1] for side in sides)
    names = [name.removeprefix("query_") for name in batch if name.startswith("query_")]
    # Padding is masked, so its tokens may be any.
    inputs = {
        name: torch.cat([_padded(batch[f"{side}_{name}"], longest) for side in sides]) for name in names
    }  # [sides·B, T]
    states = model(**inputs).last_hidden_state  # [sides·B, T, D]
    vectors = functional.normalize(pooled(states.float(), inputs["attention_mask"], pooling), dim=-1)
    return vectors.chunk(len(sides))


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """The vectors [B, D] of states [B, T, D]; `mask` [B, T] is 1 at tokens, which begin each row.

    The names are those of sentence-transformers: the mean over tokens, the first token (`cls`), or the last one.
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(-1) - 1]
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _padded(tensor: Tensor, length: int) -> Tensor:
    return functional.pad(tensor, (0, length - tensor.shape[1]))


def _number(tokens: list[int]) -> int:
    return int.from_bytes(hashlib.sha256(repr(tokens).encode()).digest()[:7], "big")


def make(inputs: ObjectiveInputs) -> Embedding:
    """Create the objective from its recipe sections."""
    return Embedding(inputs.embedding, inputs.data_group)
