"""An objective on rows whose tokens are shared by several ranks.

B: rows, T: tokens of a row, P: ranks that share it
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from shardyard.engine.mesh import Axis, Mesh
from shardyard.engine.parallel.ulysses import SharedAttention, share_attention
from shardyard.objectives.base import Measured, Objective, Tensors, Totals
from shardyard.recipe.isolation import is_packed, isolation_of
from shardyard.recipe.schema import Recipe


class OnSharedRows(Objective):
    """An objective that measures this rank's part of each row. Losses and counts of the ranks add up to those of whole
    rows: labels were shifted before, so the last token of a part has the first of the next one as its target."""

    def __init__(self, objective: Objective, axis: Axis, attention: SharedAttention, *, isolate: bool) -> None:
        """`isolate`: documents of a row begin where positions restart, and do not see each other."""
        self._objective, self._axis, self._isolate = objective, axis, isolate
        self.attention = attention
        self.weights = objective.weights
        self.shares_of_rows = objective.shares_of_rows

    def counts(self, batch: Tensors) -> dict[str, float]:
        """Those of this rank's tokens."""
        return self._objective.counts(self._part(batch))

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """The losses and observations of this rank's tokens."""
        batch = with_positions(batch)
        self.attention.begin(batch["position_ids"] if self._isolate else None)
        return self._objective.measure(model, self._part(batch))

    def _part(self, batch: Tensors) -> Tensors:
        return {name: part_of(value, self._axis) for name, value in batch.items()}

    def total(self, totals: Totals) -> float:
        """As the objective has it."""
        return self._objective.total(totals)

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """As the objective has them."""
        return self._objective.train_metrics(totals)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """As the objective has them."""
        return self._objective.metrics(totals)


def on_shared_rows(objective: Objective, model: Any, recipe: Recipe, mesh: Mesh) -> Objective:
    """The objective on the parts of rows that this rank computes; `model` of transformers then shares its attention.

    Raises:
        ModelError: the attention of this model cannot be shared.
    """
    if mesh.sequence.size == 1:
        return objective
    assert recipe.data.sequence_length is not None, "checked with the recipe"
    attention = share_attention(model, mesh.sequence, split_heads=mesh.tensor.size, length=recipe.data.sequence_length)
    isolate = is_packed(recipe) and isolation_of(recipe.data) != "rows"
    return OnSharedRows(objective, mesh.sequence, attention, isolate=isolate)


def whole_rows(objective: Objective) -> AbstractContextManager[None]:
    """Context in which the model computes whole rows on each rank."""
    return objective.attention.whole_rows() if isinstance(objective, OnSharedRows) else nullcontext()


def with_positions(batch: Tensors) -> Tensors:
    """The batch with `position_ids`, which the parts of a row cannot tell, and without a mask of padding: it is at the
    end of a row, where no target sees it."""
    ids = batch["input_ids"]
    counted = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return {"position_ids": counted, **{name: value for name, value in batch.items() if name != "attention_mask"}}


def part_of(rows: Tensor, axis: Axis) -> Tensor:
    """This rank's tokens: [B, T, …] → [B, T/P, …]."""
    return rows.chunk(axis.size, dim=1)[axis.index].contiguous()
