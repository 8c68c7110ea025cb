"""Rerankers: scores of documents by their relevance for a query (Nogueira and Cho 2019).

B: rows, K: documents of a query, T: tokens of a document with its query
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shardyard.objectives import losses
from shardyard.objectives.base import Measured, Objective, Tensors, Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.recipe.schema import Ranking

# Results beyond this place do not count in nDCG.
DEPTH = 10


class Reranker(Objective):
    """Rows of queries with documents (`rows.py`). A target is a document with the binary loss, else a query."""

    def __init__(self, settings: Ranking) -> None:
        self._settings = settings

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per document, or per query."""
        if self._settings.loss == "binary":
            return {"loss": int((batch["labels"] >= 0).sum())}
        return {"loss": len(batch["labels"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, K], -1 where there is no document; everything else is passed to the model, [B·K, T] each."""
        labels = batch["labels"]
        inputs = {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name != "labels"}
        scores = model(**inputs).logits.reshape(labels.shape).float()
        loss = self._loss(scores, labels)
        return Measured({"loss": loss}, {**rank_sums(scores.detach(), labels), "queries": _count(labels)})

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self._settings.loss == "listwise":
            return losses.listwise(scores, labels)
        if self._settings.loss == "margin":
            return losses.pairwise_margin(scores, labels, margin=self._settings.margin)
        # Grades above 1 count as relevant.
        return losses.binary_cross_entropy(scores, labels.clamp(0, 1), mask=labels >= 0)

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Share of the training queries whose first document is relevant, before the update."""
        return {"train/accuracy": self.metrics(totals)["accuracy"]}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Share of queries whose first document is relevant, mean reciprocal rank, and nDCG."""
        queries = max(1.0, float(totals.observed["queries"]))
        return {name: float(totals.observed[name]) / queries for name in ("accuracy", "mrr", "ndcg_at_10")}


def rank_sums(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over queries, in fp64. A wrong document with the score of a relevant one is ranked before it.

    accuracy: whether the first document is relevant. mrr: 1 / rank of the first relevant one (Voorhees 1999).
    ndcg_at_10: Σ (2^r - 1) / log2(1 + rank) over the first ten, divided by its value in the best order (Burges et al.
    2005).

    Args:
        scores, labels: [B, K]; negative labels stand for documents that do not exist.
    """
    scores = scores.double().masked_fill(labels < 0, -torch.inf)
    # Stable sorts: by relevance upwards, then by score downwards.
    order = labels.argsort(dim=-1, stable=True)
    order = order.gather(-1, scores.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    placed = labels.gather(-1, order).clamp(min=0).double()  # [B, K]
    places = torch.arange(1, labels.shape[-1] + 1, device=labels.device, dtype=torch.float64)
    discounts = torch.where(places <= DEPTH, 1 / torch.log2(1 + places), 0)
    gains, best = (((2**grades - 1) * discounts).sum(-1) for grades in (placed, placed.sort(descending=True).values))
    return {
        "accuracy": (placed[:, 0] > 0).double().sum(),
        "mrr": ((placed > 0) / places).amax(-1).sum(),
        "ndcg_at_10": (gains / best.clamp(min=torch.finfo(torch.float64).tiny)).sum(),
    }


def _count(labels: Tensor) -> Tensor:
    return torch.full((), float(len(labels)), dtype=torch.float64, device=labels.device)


def make(inputs: ObjectiveInputs) -> Reranker:
    """Create the objective from its recipe sections."""
    return Reranker(inputs.ranking)
