"""The interface of an objective: from a micro-batch to sums of losses and of observations for metrics.

Everything is a sum over targets, so all targets of a global batch have the same weight, however it is split into
micro-batches and ranks; the engine divides by the counts of the whole global batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100
# The loss term of `loss.z_loss`.
Z_LOSS = "z_loss"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """The result of one pass over a micro-batch.

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
        """Mean of a loss term over its targets; 0 if it has no targets."""
        return self.losses[term] / (self.counts[term] or 1.0)

    def share(self, name: str, term: str) -> float:
        """An observed scalar divided by the number of targets of a term."""
        return float(self.observed[name]) / (self.counts[term] or 1.0)


class Objective:
    """Base of all objectives. `weights` are the factors of the loss terms in the total loss."""

    weights: Mapping[str, float] = {"loss": 1.0}
    shares_of_rows: frozenset[str] = frozenset()
    """Metrics of `score` that are shares of the held-out rows, for their standard error."""

    def counts(self, batch: Tensors) -> dict[str, float]:
        """Number of targets of each loss term in a micro-batch."""
        raise NotImplementedError

    def measure(self, model: nn.Module, batch: Tensors) -> Measured:
        """Forward pass of a micro-batch; calls `model`, including its wrappers, once."""
        raise NotImplementedError

    def total(self, totals: Totals) -> float:
        """The total loss that training minimises, in the unit of its terms."""
        return sum(weight * totals.mean(term) for term, weight in self.weights.items())

    def train_metrics(self, totals: Totals) -> dict[str, float]:
        """Full metric names → values to record with every step, in addition to the loss."""
        terms = [term for term in self.weights if term != Z_LOSS]
        return {f"train/loss_{term}": totals.mean(term) for term in terms} if len(terms) > 1 else {}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Metrics of an evaluation in addition to `loss`, under the names in the specification."""
        return {}

    def rows_to_collect(self, rows: int) -> int:
        """How many of the `rows` held-out rows an evaluation passes to `collect`, starting with the first."""
        return 0

    def collect(self, model: Any, batch: Tensors, *, synchronised: bool) -> list[Any]:
        """The picklable values that `score` needs for each row of a batch.

        `synchronised`: a forward pass is a collective (ZeRO-3), and all ranks call this.
        """
        raise NotImplementedError

    def score(self, collected: list[Any]) -> dict[str, float]:
        """Metrics of an evaluation that need all rows together; a `loss` in them replaces the mean."""
        return {}


def count_targets(labels: Tensor) -> int:
    """Number of targets in `labels` of any shape: the entries that are not -100."""
    return int(torch.count_nonzero(labels != IGNORED))


def is_training(model: nn.Module) -> bool:
    """Whether a model is in training mode; DeepSpeed's engine sets the flag of the wrapped module, not its own."""
    return bool(getattr(model, "module", model).training)


def as_model(model: nn.Module, values: Tensor) -> Tensor:
    """Convert floating-point inputs to the precision of the model's weights."""
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return values.to(dtype)
