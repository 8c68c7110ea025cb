"""Masked language modelling: hidden tokens are predicted from both sides (Devlin et al. 2018)."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from shardyard.objectives import losses
from shardyard.objectives.base import IGNORED, Z_LOSS, Measured, Objective, Tensors, Totals, count_targets, is_training
from shardyard.objectives.chunked import ChunkedLogits, output_with_logits
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.scores import perplexity
from shardyard.objectives.z_loss import token_losses, z_metrics
from shardyard.recipe.schema import Loss

Logits = TypeVar("Logits", Tensor, ChunkedLogits)


class MaskedLM(Objective):
    """Rows with hidden tokens (`data/formats/masked.py`); each selected token is one target."""

    def __init__(self, loss: Loss, logits_chunk: int = 0) -> None:
        """`logits_chunk`: most tokens whose logits exist at the same time; 0 for all."""
        self._loss, self._logits_chunk = loss, logits_chunk
        self.weights = {"loss": 1.0, **({Z_LOSS: loss.z_loss} if loss.z_loss else {})}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per selected token."""
        return dict.fromkeys(self.weights, float(count_targets(batch["labels"])))

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, T]; everything else in the batch is passed to the model."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits, labels = chosen(output_with_logits(model, inputs, self._logits_chunk).logits, batch["labels"])
        loss, training = partial(target_loss, self._loss), is_training(model)
        found = token_losses(loss, logits, labels, z_loss=self._loss.z_loss, training=training)
        return Measured(found, {"correct": num_correct(logits, labels)})

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """With a z-loss, both terms."""
        return z_metrics(totals, self._loss.name)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Perplexity, and the share of targets that are the likeliest token."""
        return {"perplexity": perplexity(totals.mean("loss")), "accuracy": totals.share("correct", "loss")}


def chosen(logits: Logits, labels: Tensor) -> tuple[Logits, Tensor]:
    """Logits [N, V] and labels [N] of the N targets only: most tokens are not targets, and fp32 logits are large."""
    kept = labels != IGNORED
    return logits[kept], labels[kept]


def target_loss(loss: Loss, logits: Tensor | ChunkedLogits, labels: Tensor) -> Tensor:
    """The sum over targets of the loss that the recipe selects."""
    if loss.name == "focal":
        return losses.focal(logits, labels, gamma=loss.focal_gamma)
    return losses.cross_entropy(logits, labels, label_smoothing=loss.label_smoothing)


def num_correct(logits: Tensor | ChunkedLogits, labels: Tensor) -> Tensor:
    """Number of `labels` […] that are the likeliest class of `logits` […, C]."""
    return (logits.detach().argmax(-1) == labels).sum()


def make(inputs: ObjectiveInputs) -> MaskedLM:
    """Create the objective from its recipe sections."""
    return MaskedLM(inputs.loss, inputs.logits_chunk)
