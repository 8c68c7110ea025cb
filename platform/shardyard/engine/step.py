"""One optimizer step over one global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor

from shardyard.data.stream.loader import Batch
from shardyard.data.stream.rows import Tensors
from shardyard.engine.deepspeed.quirks import backward, gradient_norm_unit, plain_gradient_norm
from shardyard.engine.mesh import Mesh
from shardyard.engine.sums import PendingSum, Sums
from shardyard.objectives.base import Objective, Totals


@dataclass(frozen=True)
class StepResult:
    """The result of one step, summed over all ranks.

    loss: the total loss; for a language model, the mean over the targets of the global batch, in nats.
    totals: the sums from which it is computed; observations stay on the device until they are read.
    grad_norm: norm of the gradient before clipping; None where DeepSpeed does not compute it.
    applied: False if fp16 or bf16 overflowed and the update was skipped.
    flags: the sum of the ranks' flags. counts: the sums of their counts.
    """

    loss: float
    totals: Totals
    grad_norm: float | None
    applied: bool
    flags: float
    counts: tuple[float, ...] = ()


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    objective: Objective,
    batch: Batch,
    mesh: Mesh,
    *,
    flag: float = 0.0,
    counts: Sequence[float] = (),
    changing: bool = False,
) -> StepResult:
    """Forward, backward and update.

    Each loss term is divided by its targets in the whole global batch, so neither the number of ranks nor the number of
    micro-batches changes the loss. DeepSpeed averages gradients over the data-parallel ranks; multiplying by their
    number turns the average into the sum that this mean needs.

    Nothing waits for the device between micro-batches: sums are accumulated on it, and once per step the few numbers
    that every step needs (losses, counts, gradient norm, flags) are copied to the host together.

    Args:
        batch: this rank's rows.
        flag: a number that is summed over all ranks with the loss, so that they agree without a separate collective.
        counts: further such numbers.
        changing: the number of micro-batches differs between steps, so DeepSpeed is told which is the last of a step;
            otherwise it counts them.
    """
    terms = sorted(objective.weights)
    own_counts = [objective.counts(part) for part in batch.micro_batches]
    pending = PendingSum([sum(counts[term] for counts in own_counts) for term in terms], mesh)
    norm_unit = gradient_norm_unit(engine)
    scales: Tensor | None = None
    norm: float | Tensor | None = None
    sums = Sums(mesh.device)
    for number, part in enumerate(batch.micro_batches, 1):
        if changing:
            engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches))
        measured = objective.measure(engine, to_device(part, mesh.device))
        if scales is None:
            scales = _scales([objective.weights[term] * mesh.data.size for term in terms], pending.on_device())
        losses = [measured.losses[term] for term in terms]
        loss = torch.stack([value * scale.to(value.dtype) for value, scale in zip(losses, scales, strict=True)]).sum()
        backward(engine, loss)
        norm = plain_gradient_norm(engine)
        engine.step()
        sums.add(measured)
    norm = engine.get_global_grad_norm() if norm is None else norm
    targets = dict(zip(terms, pending.on_device(), strict=True))
    norms = [] if norm is None else [torch.as_tensor(norm, dtype=torch.float64)]
    totals, (flags, *summed), norms_here = sums.over_ranks(mesh, [flag, *counts]).to_host(targets, *norms)
    return StepResult(
        loss=objective.total(totals),
        totals=totals,
        grad_norm=norms_here[0] / norm_unit if norms_here else None,
        applied=bool(engine.was_step_applied()),
        flags=flags,
        counts=tuple(summed),
    )


def _scales(factors: Sequence[float], targets: Tensor) -> Tensor:
    """The multipliers of the loss terms [N]: `factors` divided by their numbers of targets, in fp64 on the device."""
    return torch.tensor(factors, dtype=torch.float64, device=targets.device) / torch.where(targets > 0, targets, 1.0)


def to_device(batch: Tensors, device: torch.device) -> Tensors:
    """Move the model's inputs to the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
