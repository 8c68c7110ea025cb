"""Direct preference optimisation: the chosen answer becomes likelier than the rejected one, relative to a reference.

Rafailov et al. 2023 (Direct Preference Optimization). The reward of an answer is β·(log p(answer) − log p_ref).

    B: pairs, T: tokens of the longest answer with its prompt, V: vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shardyard.objectives.base import IGNORED, Z_LOSS, Measured, Objective, Tensors, Totals, count_targets, is_training
from shardyard.objectives.chunked import ChunkedLogits, output_with_logits
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.losses import dpo, sequence_log_probability
from shardyard.objectives.z_loss import with_z_loss, z_metrics
from shardyard.recipe.schema import Preference as Settings

_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}


class Preference(Objective):
    """Rows of pairs (`data/formats/preferences.py`); each pair is one target."""

    def __init__(self, settings: Settings, reference: Any, logits_chunk: int = 0, z_loss: float = 0.0) -> None:
        """`reference`: called like the model, without gradients. `logits_chunk`: most tokens whose logits exist at the
        same time, 0 for all. `z_loss`: its weight, for the policy."""
        self._settings, self._reference, self._logits_chunk = settings, reference, logits_chunk
        self._z_loss = z_loss
        self.weights = {"loss": 1.0, **({Z_LOSS: z_loss} if z_loss else {})}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """One target per pair; for the z-loss, one per token of both answers."""
        tokens = sum(count_targets(batch[f"{answer}_labels"]) for answer in ("chosen", "rejected"))
        return {"loss": num_pairs(batch), **({Z_LOSS: tokens} if self._z_loss else {})}

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """`chosen_…` and `rejected_…`: `input_ids`, `attention_mask`, `labels` (shifted, -100 outside answers) [B, T].

        With `…_pairs` there are several sequences for an answer of a pair: its log-probability is their sum.

        Observed: pairs whose chosen answer has the larger reward, and the sum of the differences (margin).
        """
        inputs = both(batch)  # [2B, T]
        labels = inputs.pop("labels")
        assert self._reference is not None, "training and evaluation bring the reference model"
        with torch.no_grad():
            reference = self._log_probability(self._reference, inputs, labels)
        squares = None
        if self._z_loss and is_training(model):
            policy, squares = self._with_z_loss(model, inputs, labels)
        else:
            policy = self._log_probability(model, inputs, labels)
        reference, policy = by_pair(batch, reference), by_pair(batch, policy)  # [2B]
        pairs = (*policy.chunk(2), *reference.chunk(2))
        loss = dpo(*pairs, beta=self._settings.beta, label_smoothing=self._settings.label_smoothing)
        rewards = self._settings.beta * (policy.detach() - reference)  # [2B]
        margin = torch.sub(*rewards.chunk(2))  # [B]
        terms = {"loss": loss}
        if self._z_loss:
            terms[Z_LOSS] = loss.new_zeros(()) if squares is None else squares
        return Measured(terms, {"preferred": (margin > 0).sum(dtype=torch.float64), "margin": margin.sum()})

    def _log_probability(self, model: Any, inputs: Tensors, labels: Tensor) -> Tensor:
        return sequence_log_probability(self._logits(model, inputs), labels)

    def _with_z_loss(self, model: Any, inputs: Tensors, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the sequences [2B], and the sum of the z-losses of their targets."""

        def each(logits: Tensor, own: Tensor) -> Tensor:
            # A sequence for each token, so that the logits of some tokens suffice.
            return sequence_log_probability(logits[:, None], own[:, None])[:, None]

        found = with_z_loss(each, self._logits(model, inputs), labels).view(*labels.shape, 2)
        return found[..., 0].sum(-1), found[..., 1].sum()

    def _logits(self, model: Any, inputs: Tensors) -> Tensor | ChunkedLogits:
        output = output_with_logits(model, {**inputs, "use_cache": False}, self._logits_chunk)
        logits: Tensor | ChunkedLogits = output.logits  # [2B, T, V]
        return logits

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Accuracy and margin of the training rows; with a z-loss, also both terms."""
        return {f"train/{name}": value for name, value in self.metrics(totals).items()} | z_metrics(totals, "dpo")

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


def num_pairs(batch: Tensors) -> int:
    """B."""
    pairs = batch.get("chosen_pairs", batch.get("rejected_pairs"))
    return len(batch["chosen_labels"]) if pairs is None else pairs.shape[1]


def by_pair(batch: Tensors, values: Tensor) -> Tensor:
    """The sums over the sequences of each answer [2B], from values of chosen sequences followed by rejected ones."""
    number = num_pairs(batch)
    if len(values) == 2 * number:
        return values
    split = torch.split(values, [len(batch[f"{answer}_labels"]) for answer in ("chosen", "rejected")])
    whose = (batch.get(f"{answer}_pairs") for answer in ("chosen", "rejected"))
    sums = [part if of is None else (part[:, None] * of).sum(0) for part, of in zip(split, whose, strict=True)]
    return torch.cat(sums)


def _padded(tensor: Tensor, length: int, fill: int) -> Tensor:
    return functional.pad(tensor, (0, length - tensor.shape[1]), value=fill)


def make(inputs: ObjectiveInputs) -> Preference:
    """Create the objective from its recipe sections and the reference model."""
    return Preference(inputs.preference, inputs.frozen, inputs.logits_chunk, inputs.loss.z_loss)
