"""Classification of whole rows: texts or images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shardyard.objectives.base import IGNORED, Measured, Objective, Tensors, Totals, as_model, count_targets
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.masked_lm.loss import num_correct, target_loss
from shardyard.recipe.schema import Loss

TOP = 5


class Classification(Objective):
    """Rows with one class each; each row is one target."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per row."""
        return {"loss": count_targets(batch["labels"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B]; everything else in the batch is passed to the model, whose `logits` are [B, C]."""
        inputs = {name: _as_input(model, tensor) for name, tensor in batch.items() if name != "labels"}
        logits, labels = _logits(model(**inputs)), batch["labels"]
        observed = {"correct": num_correct(logits, labels), "classes": class_counts(logits, labels)}
        if logits.size(-1) > TOP:
            observed["correct_top5"] = (logits.detach().topk(TOP).indices == labels[:, None]).sum()
        return Measured({"loss": target_loss(self._loss, logits, labels)}, observed)

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy on the training rows, before the update."""
        return {"train/accuracy": totals.share("correct", "loss")}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy, macro F1 and, with more than five classes, top-5 accuracy."""
        found = {"accuracy": totals.share("correct", "loss"), "f1": macro_f1(totals.observed["classes"])}
        if "correct_top5" in totals.observed:
            found["accuracy_top5"] = totals.share("correct_top5", "loss")
        return found


def _logits(output: Any) -> Tensor:
    """The scores [B, C] of a model's output; PP-LCNet names its only output after the states that it comes from."""
    found: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return found


def _as_input(model: nn.Module, tensor: Tensor) -> Tensor:
    return as_model(model, tensor) if tensor.is_floating_point() else tensor


def class_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Numbers of correct, predicted and labelled rows of each class, [3, C], from which F1 is computed.

    With a thousand classes, the full confusion matrix would be a million numbers to sum.
    """
    # Neither masks nor bincount: their output size depends on values, so the host would wait for the device.
    classes = logits.size(-1)
    kept, predicted = (labels != IGNORED).flatten(), logits.detach().argmax(-1).flatten()
    labelled, nobody = labels.flatten().clamp(min=0), torch.full_like(predicted, classes)
    sets = (torch.where(kept & (predicted == labelled), predicted, nobody), predicted, labelled)
    members = torch.stack([torch.where(kept, one, nobody) for one in sets])  # [3, N]
    counts = torch.zeros(3, classes + 1, dtype=torch.int64, device=members.device)
    return counts.scatter_add_(1, members, torch.ones_like(members))[:, :classes]


def macro_f1(counts: Tensor) -> float:
    """Mean of 2·TP / (predicted + labelled) over the classes [3, C] that are predicted or labelled."""
    correct, predicted, labelled = counts.double()
    occurs = predicted + labelled
    there = occurs > 0
    return float((2 * correct[there] / occurs[there]).mean()) if there.any() else 0.0


def make(inputs: ObjectiveInputs) -> Classification:
    """Create the objective from its recipe sections."""
    return Classification(inputs.loss)
