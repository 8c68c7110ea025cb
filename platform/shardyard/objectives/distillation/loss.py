"""Distillation: a student learns the labels and, for each of them, the teacher's whole distribution.

Hinton et al. 2015 (Distilling the Knowledge in a Neural Network): (1 − w)·cross-entropy + w·τ²·KL(teacher ‖ student).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shardyard.models.isolation import document_inputs
from shardyard.objectives.base import IGNORED, Z_LOSS, Measured, Objective, Tensors, Totals, count_targets, is_training
from shardyard.objectives.chunked import output_with_logits, over_tokens
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import cross_entropy, distillation
from shardyard.objectives.scores import perplexity
from shardyard.objectives.z_loss import with_z_loss, z_metrics
from shardyard.recipe.isolation import Isolation
from shardyard.recipe.schema import Distillation as Settings


class Distilled(Objective):
    """Rows of packed documents (`data/formats/packed.py`). B: rows, T: tokens in a row, V: vocabulary."""

    def __init__(
        self,
        settings: Settings,
        teacher: Any,
        isolation: Isolation = "positions",
        logits_chunk: int = 0,
        z_loss: float = 0.0,
    ) -> None:
        """`teacher`: called like the model, without gradients. `isolation`: how documents of a row are kept apart.
        `logits_chunk`: most tokens whose logits exist at the same time, 0 for all. `z_loss`: its weight, for the
        student."""
        self._settings, self._teacher, self._isolation = settings, teacher, isolation
        self._logits_chunk, self._z_loss = logits_chunk, z_loss
        squares = {Z_LOSS: z_loss} if z_loss else {}
        self.weights = {"labels": 1.0 - settings.weight, "teacher": settings.weight, **squares}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """The same targets for all terms: one per token."""
        return dict.fromkeys(self.weights, float(count_targets(batch["labels"])))

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`input_ids`, `labels`, `position_ids` [B, T]."""
        ids, positions, labels = batch["input_ids"], batch["position_ids"], batch["labels"]
        assert self._teacher is not None, "training and evaluation bring the teacher"
        with torch.no_grad():
            apart = document_inputs(self._teacher, positions, self._isolation)
            inputs = {"input_ids": ids, **apart, "use_cache": False}
            taught = output_with_logits(self._teacher, inputs, self._logits_chunk).logits  # [B, T, V]
        inputs = {"input_ids": ids, **document_inputs(model, positions, self._isolation), "use_cache": False}
        logits = output_with_logits(model, inputs, self._logits_chunk).logits  # [B, T, V]

        def both_terms(logits: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
            # Rows beyond the tokenizer's are padding, of which one of the two may have more.
            common = min(logits.shape[-1], taught.shape[-1])
            student, teacher, mask = logits[..., :common], taught[..., :common], labels != IGNORED
            softened = distillation(student, teacher, temperature=self._settings.temperature, mask=mask)
            return torch.stack([cross_entropy(logits, labels), softened])

        if self._z_loss and is_training(model):
            terms = with_z_loss(both_terms, logits, labels, taught).view(-1, 3).sum(0)
            return Measured(dict(zip(("labels", "teacher", Z_LOSS), terms, strict=True)))
        terms = over_tokens(both_terms, logits, labels, taught).view(-1, 2).sum(0)
        squares = {Z_LOSS: terms.new_zeros(())} if self._z_loss else {}
        return Measured({**dict(zip(("labels", "teacher"), terms, strict=True)), **squares})

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """All terms."""
        return super().train_metrics(totals) | z_metrics(totals)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Both terms, and the perplexity of the labels, which is comparable with models trained without a teacher."""
        means = {f"loss_{term}": totals.mean(term) for term in ("labels", "teacher")}
        return {"perplexity": perplexity(totals.mean("labels")), **means}


def make(inputs: ObjectiveInputs) -> Distilled:
    """Create the objective from its recipe sections and the teacher."""
    return Distilled(
        inputs.distillation, inputs.frozen, inputs.isolation, inputs.logits_chunk, z_loss=inputs.loss.z_loss
    )
