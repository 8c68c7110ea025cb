"""Direct preference optimisation: the chosen answer becomes likelier than the rejected one, relative to a reference.

Rafailov et al. 2023 (Direct Preference Optimization). The reward of an answer is β·(log p(answer) − log p_ref).

    B: pairs, T: tokens of the longest answer with its prompt, V: vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shardyard.objectives.base import IGNORED, Measured, Objective, Tensors, Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import dpo, sequence_log_probability
from shardyard.recipe.schema import Preference as Settings

_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}


class Preference(Objective):
    """Rows of pairs (`data/formats/preferences.py`); each pair is one target."""

    def __init__(self, settings: Settings, reference: Any) -> None:
        """`reference`: called like the model, without gradients."""
        self._settings, self._reference = settings, reference

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per pair."""
        return {"loss": len(batch["chosen_labels"])}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`chosen_…` and `rejected_…`: `input_ids`, `attention_mask`, `labels` (shifted, -100 outside answers) [B, T].

        Observed: pairs whose chosen answer has the larger reward, and the sum of the differences (margin).
        """
        inputs = both(batch)  # [2B, T]
        labels = inputs.pop("labels")
        assert self._reference is not None, "training and evaluation bring the reference model"
        with torch.no_grad():
            reference = sequence_log_probability(self._reference(**inputs, use_cache=False).logits, labels)  # [2B]
        policy = sequence_log_probability(model(**inputs, use_cache=False).logits, labels)  # [2B]
        pairs = (*policy.chunk(2), *reference.chunk(2))
        loss = dpo(*pairs, beta=self._settings.beta, label_smoothing=self._settings.label_smoothing)
        rewards = self._settings.beta * (policy.detach() - reference)  # [2B]
        margin = torch.sub(*rewards.chunk(2))  # [B]
        return Measured({"loss": loss}, {"preferred": (margin > 0).sum(dtype=torch.float64), "margin": margin.sum()})

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy and margin of the training rows."""
        return {f"train/{name}": value for name, value in self.metrics(totals).items()}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Share of pairs whose chosen answer has the larger reward, and the mean difference in reward."""
        return {"accuracy": totals.share("preferred", "loss"), "margin": totals.share("margin", "loss")}


def both(batch: Tensors) -> Tensors:
    """Chosen answers followed by rejected ones, padded to the same length: [2B, T] by name."""
    length = max(batch["chosen_labels"].shape[1], batch["rejected_labels"].shape[1])
    return {
        name: torch.cat([_padded(batch[f"{answer}_{name}"], length, fill) for answer in ("chosen", "rejected")])
        for name, fill in _PADDING.items()
    }


def _padded(tensor: Tensor, length: int, fill: int) -> Tensor:
    return functional.pad(tensor, (0, length - tensor.shape[1]), value=fill)


def make(inputs: ObjectiveInputs) -> Preference:
    """Create the objective from its recipe sections and the reference model."""
    return Preference(inputs.preference, inputs.frozen)
