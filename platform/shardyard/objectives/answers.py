"""Learning to answer: cross-entropy of the answer tokens only, given everything before them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from shardyard.models.isolation import Inputs, document_inputs
from shardyard.objectives.base import (
    IGNORED,
    Z_LOSS,
    Measured,
    Objective,
    Tensors,
    Totals,
    as_model,
    count_targets,
    is_training,
)
from shardyard.objectives.chunked import ChunkedLogits, output_with_logits
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import cross_entropy
from shardyard.objectives.scores import perplexity
from shardyard.objectives.z_loss import token_losses, z_metrics
from shardyard.recipe.isolation import Isolation


class Answers(Objective):
    """Rows of conversations, with or without images (`data/formats/conversations.py`, `image_answers.py`).

    A target of weight w adds w times its cross-entropy to the loss and w to its denominator, as in the weighted mean
    of PyTorch: a message of weight 0.5 counts half as much as one of its length, and equal weights change nothing.

    B: rows, T: tokens in a row, V: vocabulary.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        packing: bool = False,
        isolation: Isolation = "positions",
        logits_chunk: int = 0,
        z_loss: float = 0.0,
    ) -> None:
        """`packing`: rows hold several conversations, at positions that restart with each; `isolation`: how they are
        kept apart; `logits_chunk`: most tokens whose logits exist at the same time, 0 for all; `z_loss`: its weight."""
        self._loss = partial(cross_entropy, label_smoothing=label_smoothing)
        self._isolation, self._logits_chunk = isolation, logits_chunk
        self._z_loss = z_loss
        self.weights = {"loss": 1.0, **({Z_LOSS: z_loss} if z_loss else {})}
        self._packing = packing and isolation != "rows"

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per answer token, or its weight."""
        weights = _weights(batch)
        targets = count_targets(batch["labels"]) if weights is None else float(weights.double().sum())
        return dict.fromkeys(self.weights, targets)

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`labels` [B, T] are already shifted: `labels[:, t]` is the token after `input_ids[:, t]`, -100 outside
        answers; `target_weights` [B, T] are their weights, if not all are 1. Everything else in the batch is passed to
        the model."""
        inputs: Inputs = {name: _as_input(model, value) for name, value in batch.items() if name not in _TARGETS}
        if self._packing:
            inputs |= document_inputs(model, batch["position_ids"], self._isolation)
        logits = output_with_logits(model, {**inputs, "use_cache": False}, self._logits_chunk).logits  # [B, T, V]
        labels, weights = batch["labels"], _weights(batch)
        training = is_training(model)
        losses = token_losses(self._loss, logits, labels, weights, z_loss=self._z_loss, training=training)
        return Measured(losses, {"correct": num_correct(logits, labels, weights)})

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Share of targets that are the likeliest token; with a z-loss, also both terms."""
        return {"train/token_accuracy": totals.share("correct", "loss"), **z_metrics(totals, "cross_entropy")}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Perplexity, and the share of targets that are the likeliest token."""
        return {
            "perplexity": perplexity(totals.mean("loss")),
            "token_accuracy": totals.share("correct", "loss"),
        }


# Tensors of a batch that are not for the model.
_TARGETS = ("labels", "target_weights")


def num_correct(logits: Tensor | ChunkedLogits, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Number of targets in `labels` […] that have the largest of the `logits` […, V], or their weight: a scalar."""
    hits = (logits.detach().argmax(-1) == labels) & (labels != IGNORED)
    return (hits if weights is None else hits * weights).sum(dtype=torch.float64)


def _weights(batch: Tensors) -> Tensor | None:
    """The weights of the labels [B, T], 0 where there is no target; None if all are 1."""
    weights = batch.get("target_weights")
    return None if weights is None else torch.where(batch["labels"] != IGNORED, weights, 0)


def _as_input(model: nn.Module, value: Tensor) -> Tensor:
    return as_model(model, value) if value.is_floating_point() else value


def make(inputs: ObjectiveInputs) -> Answers:
    """Create the objective from its recipe sections."""
    return Answers(
        inputs.loss.label_smoothing,
        packing=inputs.packing,
        isolation=inputs.isolation,
        logits_chunk=inputs.logits_chunk,
        z_loss=inputs.loss.z_loss,
    )
