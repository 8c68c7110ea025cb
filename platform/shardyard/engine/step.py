"""One optimizer step over one global batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import deepspeed
import torch

from shardyard.data.loader import Batch
from shardyard.engine.deepspeed_engine import backward, gradient_norm_unit
from shardyard.engine.world import PendingSum, Rank, sum_over_ranks
from shardyard.objectives.causal import causal_lm_loss, count_targets


@dataclass(frozen=True)
class StepResult:
    """What one step gave, summed over all ranks.

    loss: mean over the targets of the global batch, in nats.
    targets: number of those targets.
    grad_norm: norm of the gradient before clipping; None where DeepSpeed does not compute it.
    applied: False when fp16 or bf16 overflowed and the update was left out.
    asked: the sum of the flags that ranks handed in.
    """

    loss: float
    targets: int
    grad_norm: float | None
    applied: bool
    asked: float


def train_step(
    engine: deepspeed.DeepSpeedEngine, batch: Batch, rank: Rank, *, micro_batch: int, flag: float = 0.0
) -> StepResult:
    """Forward, backward and update.

    The loss is divided by the targets of the whole global batch, so neither the number of ranks nor that of
    micro-batches changes what is minimised. DeepSpeed averages gradients over ranks; multiplying by the world size
    makes that the sum that this mean needs.

    Args:
        batch: this rank's rows.
        micro_batch: rows that go through the model at once.
        flag: a number that is summed over ranks along with the loss, so that ranks agree without a message of its own.
    """
    targets = PendingSum([count_targets(batch.labels)], rank.device)
    norm_unit = gradient_norm_unit(engine)
    total = 0.0
    scale = 0.0
    for input_ids, labels, position_ids in micro_batches(batch, micro_batch, rank.device):
        loss = causal_lm_loss(engine, input_ids, labels, position_ids)
        if not scale:
            scale = rank.world_size / max(1.0, targets.wait()[0])
        backward(engine, loss * scale)
        engine.step()
        total += float(loss.detach())
    (count,) = targets.wait()
    loss_sum, asked = sum_over_ranks([total, flag], rank.device)
    norm = engine.get_global_grad_norm()
    return StepResult(
        loss=loss_sum / max(1.0, count),
        targets=round(count),
        grad_norm=None if norm is None else float(norm) / norm_unit,
        applied=bool(engine.was_step_applied()),
        asked=asked,
    )


def micro_batches(
    batch: Batch, micro_batch: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`input_ids`, `labels`, `position_ids` [micro_batch, T] on the device, one micro-batch after the other."""
    rows = batch.input_ids.size(0)
    for first in range(0, rows, micro_batch):
        part = slice(first, first + micro_batch)
        yield (
            batch.input_ids[part].to(device, non_blocking=True),
            batch.labels[part].to(device, non_blocking=True),
            batch.position_ids[part].to(device, non_blocking=True),
        )
