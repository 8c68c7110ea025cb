"""One optimizer step over one global batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor

from shardyard.data.stream.loader import Batch
from shardyard.data.stream.rows import Tensors
from shardyard.engine.deepspeed.quirks import backward, gradient_norm_unit, plain_gradient_norm
from shardyard.engine.mesh import Mesh
from shardyard.engine.profiling.spans import span
from shardyard.engine.sums import ArrivingSums, PendingSum, Sums
from shardyard.engine.transfer import Copies, numbers_on
from shardyard.models.quirks import masks_of, unseen_masks
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


@dataclass(frozen=True)
class StepUnderway:
    """A step whose work has been given to the device. `applied`: as in `StepResult`, which DeepSpeed knows by then."""

    objective: Objective
    sums: ArrivingSums
    norm_unit: float
    applied: bool

    def result(self) -> StepResult:
        """The result; waits until it has arrived on the host."""
        totals, (flags, *summed), norms = self.sums.read()
        return StepResult(
            loss=self.objective.total(totals),
            totals=totals,
            grad_norm=norms[0] / self.norm_unit if norms else None,
            applied=self.applied,
            flags=flags,
            counts=tuple(summed),
        )


def train_step(engine: deepspeed.DeepSpeedEngine, objective: Objective, batch: Batch, mesh: Mesh) -> StepResult:
    """Forward, backward and update, and their result, for which the host waits."""
    return start_step(engine, objective, batch, mesh, Copies(mesh.device)).result()


def start_step(
    engine: deepspeed.DeepSpeedEngine,
    objective: Objective,
    batch: Batch,
    mesh: Mesh,
    copies: Copies,
    *,
    flag: float = 0.0,
    counts: Sequence[float] = (),
    changing: bool = False,
    observed: bool = False,
) -> StepUnderway:
    """Forward, backward and update.

    Each loss term is divided by its targets in the whole global batch, so neither the number of ranks nor the number of
    micro-batches changes the loss. DeepSpeed averages gradients over the ranks with the same weights; multiplying by
    their number turns the average into the sum that this mean needs.

    Nothing here waits for the device, except what DeepSpeed does in its `step` (docs/benchmarks.md): sums are
    accumulated on the device, and the few numbers that every step needs (losses, counts, gradient norm, flags) start
    for the host together.

    Args:
        batch: this rank's rows.
        copies: of micro-batches to the device.
        flag: a number that is summed over all ranks with the loss, so that they agree without a separate collective.
        counts: further such numbers.
        changing: the number of micro-batches differs between steps, so DeepSpeed is told which is the last of a step;
            otherwise it counts them.
        observed: the host needs the observations too.
    """
    terms = sorted(objective.weights)
    own_counts = [objective.counts(part) for part in batch.micro_batches]
    pending = PendingSum([sum(counts[term] for counts in own_counts) for term in terms], mesh)
    norm_unit = gradient_norm_unit(engine)
    scales: Tensor | None = None
    norm: float | Tensor | None = None
    sums = Sums(mesh.device)
    for number, part in enumerate(copies.of(batch.micro_batches), 1):
        if changing:
            engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches))
        # On a CPU, looking at a mask costs nothing.
        on_gpu = mesh.device.type == "cuda"
        unseen = unseen_masks(masks_of(batch.micro_batches[number - 1])) if on_gpu else nullcontext()
        with span("forward"), unseen:
            measured = objective.measure(engine, part)
        if scales is None:
            factors = numbers_on(mesh.device, [objective.weights[term] * mesh.zero.size for term in terms])
            scales = _scales(factors, pending.on_device())
        losses = [measured.losses[term] for term in terms]
        loss = torch.stack([value * scale.to(value.dtype) for value, scale in zip(losses, scales, strict=True)]).sum()
        with span("backward"):
            backward(engine, loss)
        with span("update"):
            norm = plain_gradient_norm(engine, mesh)
            engine.step()
        sums.add(measured)
    norm = engine.get_global_grad_norm() if norm is None else norm
    targets = dict(zip(terms, pending.on_device(), strict=True))
    with span("metrics"):
        summed = sums.over_ranks(mesh, [flag, *counts])
        leaving = summed.leave(targets, *([] if norm is None else [norm]), observed=observed)
    return StepUnderway(objective, leaving, norm_unit, applied=bool(engine.was_step_applied()))


def _scales(factors: Tensor, targets: Tensor) -> Tensor:
    """The multipliers of the loss terms [N]: `factors` divided by their numbers of targets, in fp64 on the device."""
    return factors / torch.where(targets > 0, targets, 1.0)


def to_device(batch: Tensors, device: torch.device) -> Tensors:
    """Move the model's inputs to the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
