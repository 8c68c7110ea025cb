"""Distillation: a student learns the labels and, for each of them, the teacher's whole distribution.

Hinton et al. 2015 (Distilling the Knowledge in a Neural Network): (1 − w)·cross-entropy + w·τ²·KL(teacher ‖ student).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shardyard.models.isolation import document_inputs
from shardyard.objectives.base import IGNORED, Measured, Objective, Tensors, Totals, count_targets
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import cross_entropy, distillation
from shardyard.objectives.scores import perplexity
from shardyard.recipe.isolation import Isolation
from shardyard.recipe.schema import Distillation as Settings


class Distilled(Objective):
    """Rows of packed documents (`data/formats/packed.py`). B: rows, T: tokens in a row, V: vocabulary."""

    def __init__(self, settings: Settings, teacher: Any, isolation: Isolation = "positions") -> None:
        """`teacher`: called like the model, without gradients. `isolation`: how documents of a row are kept apart."""
        self._settings, self._teacher, self._isolation = settings, teacher, isolation
        self.weights = {"labels": 1.0 - settings.weight, "teacher": settings.weight}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """The same targets for both terms: one per token."""
        return dict.fromkeys(self.weights, float(count_targets(batch["labels"])))

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`input_ids`, `labels`, `position_ids` [B, T]."""
        ids, positions, labels = batch["input_ids"], batch["position_ids"], batch["labels"]
        settings = self._settings
        assert self._teacher is not None, "training and evaluation bring the teacher"
        with torch.no_grad():
            apart = document_inputs(self._teacher, positions, self._isolation)
            taught = self._teacher(input_ids=ids, **apart, use_cache=False).logits  # [B, T, V]
        apart = document_inputs(model, positions, self._isolation)
        logits = model(input_ids=ids, **apart, use_cache=False).logits  # [B, T, V]
        # Rows beyond the tokenizer's are padding, of which one of the two may have more.
        common = min(logits.shape[-1], taught.shape[-1])
        student, teacher = logits[..., :common], taught[..., :common]
        return Measured(
            {
                "labels": cross_entropy(logits, labels),
                "teacher": distillation(student, teacher, temperature=settings.temperature, mask=labels != IGNORED),
            }
        )

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Both terms, and the perplexity of the labels, which is comparable with models trained without a teacher."""
        means = {f"loss_{term}": totals.mean(term) for term in self.weights}
        return {"perplexity": perplexity(totals.mean("labels")), **means}


def make(inputs: ObjectiveInputs) -> Distilled:
    """Create the objective from its recipe sections and the teacher."""
    return Distilled(inputs.distillation, inputs.frozen, inputs.isolation)
