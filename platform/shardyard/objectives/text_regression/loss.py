"""Regression of texts: one number for each row.

B: rows, N: held-out rows
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shardyard.objectives import losses
from shardyard.objectives.base import Measured, Objective, Tensors
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.text_regression.correlation import pearson, spearman
from shardyard.recipe.schema import Regression


class TextRegression(Objective):
    """Rows with a number each (`rows.py`); each row is one target."""

    def __init__(self, settings: Regression) -> None:
        self._settings = settings

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row."""
        return {"loss": len(batch["labels"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B]; everything else in the batch is passed to the model, whose `logits` are [B, 1]."""
        found, labels = _predicted(model, batch), batch["labels"]
        if self._settings.loss == "huber":
            return Measured({"loss": losses.huber(found, labels, delta=self._settings.delta)})
        return Measured({"loss": (losses.mae if self._settings.loss == "mae" else losses.mse)(found, labels)})

    def rows_to_collect(self, rows: int) -> int:
        """All rows, because the rank of a number depends on all others."""
        return rows

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """The predicted number and the label of each row."""
        return list(zip(_predicted(model, batch).tolist(), batch["labels"].tolist(), strict=True))

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Root of the mean squared error, mean absolute error, and both correlations."""
        found, labels = torch.tensor(collected, dtype=torch.float64).T
        errors = found - labels
        return {
            "rmse": float(errors.square().mean().sqrt()),
            "mae": float(errors.abs().mean()),
            "pearson": pearson(found, labels),
            "spearman": spearman(found, labels),
        }


def _predicted(model: Any, batch: Tensors) -> Tensor:
    """The predicted numbers [B]."""
    logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return logits.squeeze(-1)


def make(inputs: ObjectiveInputs) -> TextRegression:
    """Create the objective from its recipe sections."""
    return TextRegression(inputs.regression)
