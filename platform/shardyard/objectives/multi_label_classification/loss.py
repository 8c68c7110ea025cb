"""Multi-label classification: each class is a question with yes or no for an answer.

B: rows, C: classes
"""

from __future__ import annotations

import torch
from torch import nn

from shardyard.objectives.base import Measured, Objective, Tensors, Totals
from shardyard.objectives.classification import macro_f1
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import binary_cross_entropy


class MultiLabelClassification(Objective):
    """Rows with any number of classes (`rows.py`); each class of each row is one target."""

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row and class."""
        return {"loss": batch["labels"].numel()}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, C]; everything else in the batch is passed to the model, whose `logits` are [B, C]."""
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        found, labels = logits.detach() > 0, batch["labels"] > 0
        observed = {
            "classes": torch.stack([found & labels, found, labels]).sum(1),  # [3, C]
            "exact": (found == labels).all(-1).sum(),
            "rows": torch.full((), float(len(labels)), dtype=torch.float64, device=labels.device),
        }
        return Measured({"loss": binary_cross_entropy(logits, batch["labels"])}, observed)

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Micro F1 on the training rows, before the update."""
        return {"train/f1_micro": self.metrics(totals)["f1_micro"]}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """F1 of all classes together, mean F1 of the classes that occur, and the share of rows with exactly their
        classes."""
        correct, predicted, labelled = totals.observed["classes"].double().sum(-1).tolist()
        return {
            "f1_micro": 2 * correct / (predicted + labelled) if predicted + labelled else 0.0,
            "f1_macro": macro_f1(totals.observed["classes"]),
            "accuracy": float(totals.observed["exact"]) / max(1.0, float(totals.observed["rows"])),
        }


def make(inputs: ObjectiveInputs) -> MultiLabelClassification:
    """Create the objective, which has no settings."""
    return MultiLabelClassification()
