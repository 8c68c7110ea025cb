"""Multiple choice: a softmax over the scores of a question's choices (Radford et al. 2018, section 3.3).

B: rows, K: choices, T: tokens of a choice with its question
"""

from __future__ import annotations

import torch
from torch import nn

from shardyard.objectives.base import Measured, Objective, Tensors, Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import cross_entropy
from shardyard.objectives.masked_lm.loss import num_correct

_LABELS = ("labels", "num_choices")


class MultipleChoice(Objective):
    """Rows of questions with choices (`rows.py`); each row is one target."""

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row."""
        return {"loss": len(batch["labels"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels`, `num_choices` [B]; everything else is passed to the model, [B, K, T] each."""
        logits = model(**{name: tensor for name, tensor in batch.items() if name not in _LABELS}).logits  # [B, K]
        there = torch.arange(logits.shape[1], device=logits.device) < batch["num_choices"][:, None]
        logits = logits.float().masked_fill(~there, torch.finfo(torch.float32).min)
        labels = batch["labels"]
        return Measured({"loss": cross_entropy(logits, labels)}, {"correct": num_correct(logits, labels)})

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy on the training rows, before the update."""
        return {"train/accuracy": totals.share("correct", "loss")}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Share of questions whose right choice has the largest score."""
        return {"accuracy": totals.share("correct", "loss")}


def make(inputs: ObjectiveInputs) -> MultipleChoice:
    """Create the objective, which has no settings."""
    return MultipleChoice()
