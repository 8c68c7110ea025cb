"""One optimizer step over one global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor

from shardyard.data.stream.loader import Batch
from shardyard.data.stream.rows import Tensors
from shardyard.engine.deepspeed.engine import backward, gradient_norm_unit, plain_gradient_norm
from shardyard.engine.world import PendingSum, Rank, sum_over_ranks
from shardyard.objectives.base import Measured, Objective, Totals


@dataclass(frozen=True)
class StepResult:
    """What one step gave, summed over all ranks.

    loss: what was minimised: for a language model the mean over the targets of the global batch, in nats.
    totals: the sums that it is made of.
    grad_norm: norm of the gradient before clipping; None where DeepSpeed does not compute it.
    applied: False when fp16 or bf16 overflowed and the update was left out.
    asked: the sum of the flags that ranks handed in.
    """

    loss: float
    totals: Totals
    grad_norm: float | None
    applied: bool
    asked: float


def train_step(
    engine: deepspeed.DeepSpeedEngine, objective: Objective, batch: Batch, rank: Rank, *, flag: float = 0.0
) -> StepResult:
    """Forward, backward and update.

    Each loss term is divided by its targets in the whole global batch, so neither the number of ranks nor that of
    micro-batches changes what is minimised. DeepSpeed averages gradients over ranks; multiplying by the world size
    makes that the sum that this mean needs.

    Args:
        batch: this rank's rows.
        flag: a number that is summed over ranks along with the loss, so that ranks agree without a message of its own.
    """
    own_counts = [objective.counts(part) for part in batch.micro_batches]
    terms = sorted(objective.weights)
    targets = PendingSum([sum(counts[term] for counts in own_counts) for term in terms], rank.device)
    norm_unit = gradient_norm_unit(engine)
    scales: dict[str, float] = {}
    norm: float | None = None
    sums = Sums()
    for part in batch.micro_batches:
        measured = objective.measure(engine, to_device(part, rank.device))
        if not scales:
            counted = dict(zip(terms, targets.wait(), strict=True))
            scales = {t: objective.weights[t] * rank.world_size / max(1.0, counted[t]) for t in terms}
        loss = torch.stack([measured.losses[term] * scales[term] for term in terms]).sum()
        backward(engine, loss)
        norm = plain_gradient_norm(engine)
        engine.step()
        sums.add(measured)
    totals, (asked,) = sums.over_ranks(dict(zip(terms, targets.wait(), strict=True)), rank, [flag])
    if norm is None:
        norm = engine.get_global_grad_norm()
    return StepResult(
        loss=objective.total(totals),
        totals=totals,
        grad_norm=None if norm is None else float(norm) / norm_unit,
        applied=bool(engine.was_step_applied()),
        asked=asked,
    )


class Sums:
    """Adds up what passes over micro-batches gave, and then what the ranks have."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}
        self.observed: dict[str, Tensor] = {}

    def add(self, measured: Measured) -> None:
        """Another micro-batch."""
        for term, value in measured.losses.items():
            self.losses[term] = self.losses.get(term, 0.0) + float(value.detach())
        for name, sum_ in measured.observed.items():
            wide = sum_.detach().to("cpu", torch.float64)
            self.observed[name] = self.observed[name] + wide if name in self.observed else wide

    def totals(self, counts: dict[str, float]) -> Totals:
        """Those of this process alone."""
        return Totals(self.losses, self.observed, counts)

    def over_ranks(
        self, counts: dict[str, float], rank: Rank, extras: Sequence[float] = ()
    ) -> tuple[Totals, list[float]]:
        """The sums over all ranks, in one collective, with `extras` summed beside them. `counts` are taken as given."""
        names = sorted(self.losses)
        flat = [self.losses[name] for name in names] + list(extras)
        for name in sorted(self.observed):
            flat += self.observed[name].flatten().tolist()
        summed = sum_over_ranks(flat, rank.device)
        losses = dict(zip(names, summed, strict=False))
        at = len(names) + len(extras)
        observed = {}
        for name in sorted(self.observed):
            size, shape = self.observed[name].numel(), self.observed[name].shape
            observed[name] = torch.tensor(summed[at : at + size], dtype=torch.float64).reshape(shape)
            at += size
        return Totals(losses, observed, counts), summed[len(names) : len(names) + len(extras)]


def to_device(batch: Tensors, device: torch.device) -> Tensors:
    """The model's inputs on the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
