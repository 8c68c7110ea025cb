"""The loss on held-out rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shardyard.data.held_out import HeldOut
from shardyard.engine.world import Rank, sum_over_ranks
from shardyard.objectives.causal import IGNORED, causal_lm_loss, count_targets


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over all targets, in nats, and what it was measured on."""

    loss: float
    rows: int
    targets: int

    @property
    def perplexity(self) -> float:
        """e to the loss; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(model: nn.Module, held_out: HeldOut, rank: Rank, *, micro_batch: int) -> Evaluation:
    """Measure on all ranks together; rank r takes rows r, r + N, …

    Under ZeRO-3 a forward pass is a collective, so every rank makes the same number of them; one that has no rows left
    repeats a row whose targets are all ignored.
    """
    share = torch.arange(rank.rank, held_out.num_rows, rank.world_size)
    passes = math.ceil(math.ceil(held_out.num_rows / rank.world_size) / micro_batch)
    total = 0.0
    count = 0
    for number in range(passes):
        rows = share[number * micro_batch : (number + 1) * micro_batch]
        loss, targets = _one_pass(model, held_out, rows, rank.device)
        total, count = total + loss, count + targets
    total, everything = sum_over_ranks([total, count], rank.device)
    return Evaluation(loss=total / max(1.0, everything), rows=held_out.num_rows, targets=round(everything))


def evaluate_alone(model: nn.Module, held_out: HeldOut, *, micro_batch: int, device: torch.device) -> Evaluation:
    """The same measurement in one process, for a model that was exported."""
    total, count = 0.0, 0
    for rows in torch.split(torch.arange(held_out.num_rows), micro_batch):
        loss, targets = _one_pass(model, held_out, rows, device)
        total, count = total + loss, count + targets
    return Evaluation(loss=total / max(1, count), rows=held_out.num_rows, targets=count)


def _one_pass(model: nn.Module, held_out: HeldOut, rows: Tensor, device: torch.device) -> tuple[float, int]:
    idle = len(rows) == 0
    picked = torch.zeros(1, dtype=torch.long) if idle else rows
    labels = torch.full_like(held_out.labels[picked], IGNORED) if idle else held_out.labels[picked]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            loss = causal_lm_loss(
                model,
                held_out.input_ids[picked].to(device),
                labels.to(device),
                held_out.position_ids[picked].to(device),
            )
    finally:
        model.train(training)
    return float(loss), count_targets(labels)
