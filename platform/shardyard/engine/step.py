"""One optimizer step over one global batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import deepspeed
import torch
from torch import Tensor

from shardyard.data.stream.loader import Batch
from shardyard.data.stream.rows import Tensors
from shardyard.engine.anomalies.guard import Guard
from shardyard.engine.anomalies.policy import Anomaly
from shardyard.engine.anomalies.quirks import pass_over
from shardyard.engine.anomalies.replicas import Replicas
from shardyard.engine.deepspeed.quirks import backward, gradient_norm_unit, plain_gradient_norm
from shardyard.engine.mesh import Mesh
from shardyard.engine.profiling.spans import span
from shardyard.engine.sums import ArrivingSums, PendingSum, RankSums, Sums
from shardyard.engine.transfer import Copies, numbers_on
from shardyard.models.quirks import masks_of, unseen_masks
from shardyard.objectives.base import Objective, Totals


@dataclass(frozen=True)
class StepResult:
    """The result of one step, summed over all ranks.

    loss: the total loss; for a language model, the mean over the targets of the global batch, in nats.
    totals: the sums from which it is computed; observations stay on the device until they are read.
    grad_norm: norm of the gradient before clipping; None where DeepSpeed does not compute it.
    applied: False if no update was made: fp16 or bf16 overflowed, or the batch was skipped.
    flags: the sum of the ranks' flags. counts: the sums of their counts.
    computed: False for a step that the run was told to skip; its loss is NaN.
    """

    loss: float
    totals: Totals
    grad_norm: float | None
    applied: bool
    flags: float
    counts: tuple[float, ...] = ()
    computed: bool = True


@dataclass(frozen=True)
class StepUnderway:
    """A step whose work has been given to the device. `applied`: as in `StepResult`, which DeepSpeed knows by then.

    judged: whether the policy for anomalies has seen its loss before the update; anomaly: what it found.
    """

    objective: Objective
    sums: ArrivingSums
    norm_unit: float
    applied: bool
    computed: bool = True
    judged: bool = False
    anomaly: Anomaly | None = None

    def result(self) -> StepResult:
        """The result; waits until it has arrived on the host."""
        totals, (flags, *summed), norms = self.sums.read()
        return StepResult(
            loss=self.objective.total(totals) if self.computed else math.nan,
            totals=totals,
            grad_norm=norms[0] / self.norm_unit if norms else None,
            applied=self.applied,
            flags=flags,
            counts=tuple(summed),
            computed=self.computed,
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
    step: int = 0,
    guard: Guard | None = None,
    replicas: Replicas | None = None,
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
        step: its number. guard: judges the batch before the update. replicas: hashes the weights before it.
    """
    terms = sorted(objective.weights)
    own_counts = [objective.counts(part) for part in batch.micro_batches]
    pending = PendingSum([sum(counts[term] for counts in own_counts) for term in terms], mesh)
    norm_unit = gradient_norm_unit(engine)
    scales: Tensor | None = None
    sums = Sums(mesh.device)
    update = _Update(engine, objective, mesh, sums, (flag, *counts), step, guard, replicas)
    if guard is not None:
        guard.remember()
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
        sums.add(measured)
        with span("update"):
            if number < len(batch.micro_batches):
                engine.step()
            else:
                update.make(dict(zip(terms, pending.on_device(), strict=True)))
    with span("metrics"):
        leaving = update.leave(observed=observed)
    skipped = update.anomaly is not None and update.anomaly.skips
    return StepUnderway(
        objective,
        leaving,
        1.0 if guard is not None else norm_unit,
        applied=bool(engine.was_step_applied()) and not skipped,
        judged=guard is not None,
        anomaly=update.anomaly,
    )


def skipped_step(
    engine: deepspeed.DeepSpeedEngine,
    objective: Objective,
    batch: Batch,
    mesh: Mesh,
    *,
    flag: float = 0.0,
    counts: Sequence[float] = (),
) -> StepUnderway:
    """A step of which nothing is computed, with the sums that the ranks agree by; arguments as for `start_step`."""
    pass_over(engine, len(batch.micro_batches))
    leaving = Sums(mesh.device).over_ranks(mesh, [flag, *counts]).leave({})
    return StepUnderway(objective, leaving, 1.0, applied=False, computed=False, judged=True)


@dataclass
class _Update:
    """The last part of a step: the update, and the sums over the ranks after it, or before if a guard needs them.

    sums: of this rank. extras: further numbers to sum.
    """

    engine: deepspeed.DeepSpeedEngine
    objective: Objective
    mesh: Mesh
    sums: Sums
    extras: tuple[float, ...]
    step: int
    guard: Guard | None
    replicas: Replicas | None
    targets: dict[str, Tensor] = field(default_factory=dict)
    norm: float | Tensor | None = None
    anomaly: Anomaly | None = None
    summed: RankSums | None = None

    def make(self, targets: dict[str, Tensor]) -> None:
        """Update the weights. `targets`: those of the whole global batch, by term."""
        self.targets = targets
        if self.replicas is not None:
            self.replicas.add()
        if self.guard is None:
            self.norm = plain_gradient_norm(self.engine, self.mesh)
            self.engine.step()
            self.norm = self.engine.get_global_grad_norm() if self.norm is None else self.norm
        else:
            self.summed = self.sums.over_ranks(self.mesh, self.extras)
            self.anomaly = self.guard.update(self.step, self._loss)
            self.norm = self.guard.norm

    def leave(self, *, observed: bool) -> ArrivingSums:
        """Start copying the sums over the ranks to the host."""
        summed = self.summed or self.sums.over_ranks(self.mesh, self.extras)
        return summed.leave(self.targets, *([] if self.norm is None else [self.norm]), observed=observed)

    def _loss(self) -> float:
        assert self.summed is not None, "a guard asks for the loss once it is summed"
        totals, _, _ = self.summed.leave(self.targets).read()
        return self.objective.total(totals)


def _scales(factors: Tensor, targets: Tensor) -> Tensor:
    """The multipliers of the loss terms [N]: `factors` divided by their numbers of targets, in fp64 on the device."""
    return factors / torch.where(targets > 0, targets, 1.0)


def to_device(batch: Tensors, device: torch.device) -> Tensors:
    """Move the model's inputs to the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
