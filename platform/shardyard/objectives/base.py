"""The interface of an objective: from a micro-batch to sums, of losses and of observations for metrics.

Everything is a sum over targets, so a global batch weighs each of its targets alike however it is cut into
micro-batches and ranks; the engine divides by the counts of the whole global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """What one pass over a micro-batch gave.

    losses: term → sum over its targets, a differentiable scalar in fp32.
    observed: name → sum without gradient, of any shape; the same names and shapes on every rank.
    """

    losses: dict[str, Tensor]
    observed: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Totals:
    """Sums over a whole global batch or evaluation: of losses, of observations, and the number of targets."""

    losses: Mapping[str, float]
    observed: Mapping[str, Tensor]
    counts: Mapping[str, float]

    def mean(self, term: str) -> float:
        """Mean of a loss term over its targets; 0 where there are none."""
        return self.losses[term] / max(1.0, self.counts[term])

    def share(self, name: str, term: str) -> float:
        """An observed scalar divided by the number of targets of a term."""
        return float(self.observed[name]) / max(1.0, self.counts[term])


class Objective:
    """Base of all objectives. `weights` are the factors of the loss terms in what is minimised."""

    weights: Mapping[str, float] = {"loss": 1.0}

    def counts(self, batch: Tensors) -> dict[str, float]:
        """Number of targets of each loss term in a micro-batch."""
        raise NotImplementedError

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """Forward pass of a micro-batch; `model` is called once, with whatever wraps it."""
        raise NotImplementedError

    def total(self, totals: Totals) -> float:
        """What is minimised, in the unit of its terms."""
        return sum(weight * totals.mean(term) for term, weight in self.weights.items())

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Full metric names → values to record with every step, beside the loss."""
        return {f"train/loss_{term}": totals.mean(term) for term in self.weights} if len(self.weights) > 1 else {}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics of an evaluation beside `loss`, by the names of its specification."""
        return {}

    def rows_to_collect(self, rows: int) -> int:
        """How many of the `rows` held-out rows an evaluation hands to `collect`, from the first on."""
        return 0

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """For each row of a batch what `score` needs, as picklable values.

        `synchronised`: other ranks do the same, and a forward pass needs them all (ZeRO-3).
        """
        raise NotImplementedError

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Metrics of an evaluation that need all rows together; `loss` here takes the place of the mean."""
        return {}


def count_targets(labels: Tensor) -> int:
    """Number of targets in `labels` of any shape: those that are not -100."""
    return int(torch.count_nonzero(labels != IGNORED))


def as_model(model: nn.Module, values: Tensor) -> Tensor:
    """Floating-point inputs in the precision of the model's weights."""
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return values.to(dtype)
