"""Loss and metrics on held-out rows, and the hook that measures them between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import nn

from shardyard.data.stream.held_out import HeldOut
from shardyard.engine.deepspeed.generating import ready_to_generate
from shardyard.engine.hooks.base import EventLog, Hook
from shardyard.engine.mesh import Axis, Mesh
from shardyard.engine.standard_errors import jackknife, of_share
from shardyard.engine.step import to_device
from shardyard.engine.sums import Sums, sum_over_ranks
from shardyard.objectives.base import Measured, Objective, Totals
from shardyard.tracking.metrics.record import StepRecord, eval_loss
from shardyard.tracking.run.events import Evaluated
from shardyard.tracking.watch.beat import BEAT


@dataclass(frozen=True)
class Evaluation:
    """The total loss as a mean over all held-out targets, and the objective's other metrics by name.

    errors: standard errors of `loss` and of metrics for which the rows tell one, by name.
    """

    loss: float
    metrics: dict[str, float]
    rows: int
    targets: int
    errors: dict[str, float]


def evaluate(
    model: nn.Module,
    objective: Objective,
    held_out: HeldOut,
    mesh: Mesh,
    *,
    micro_batch: int,
    synchronised: bool = False,
) -> Evaluation:
    """Evaluate on all ranks together; data-parallel rank r of N takes rows r, r + N, …

    Under ZeRO-3 (`synchronised`) a forward pass is a collective, so every rank runs the same number of them; a rank
    without rows left repeats a row that does not count.
    """
    sums, counts, parts = _measure(model, objective, _passes(mesh.data, held_out.num_rows, micro_batch), held_out, mesh)
    terms = sorted(objective.weights)
    everything = sum_over_ranks([counts[term] for term in terms], mesh)
    totals, _, _ = sums.over_ranks(mesh).to_host(dict(zip(terms, everything, strict=True)))
    scored: dict[str, float] = {}
    if decoded := min(held_out.num_rows, objective.rows_to_collect(held_out.num_rows)):
        passes = _passes(mesh.data, decoded, micro_batch)
        own = _collect(model, objective, passes, held_out, mesh.device, synchronised=synchronised)
        scored = objective.score(_in_order(mesh.data.gather(own)))
    together = [_added(of_pass) for of_pass in zip(*mesh.sequence.gather(parts), strict=True)]
    everyones = [part for own in mesh.data.gather(together) for part in own]
    return _evaluation(objective, totals, scored, held_out, everyones)


def _evaluation(
    objective: Objective, totals: Totals, scored: dict[str, float], held_out: HeldOut, parts: Sequence[Totals]
) -> Evaluation:
    targets = round(next(iter(totals.counts.values())))
    metrics = {**_measured(objective, totals), **scored}
    errors = jackknife(parts, lambda some: _measured(objective, some))
    errors = {name: error for name, error in errors.items() if name not in scored}
    errors |= {
        name: of_share(value, held_out.num_rows) for name, value in scored.items() if name in objective.shares_of_rows
    }
    return Evaluation(metrics.pop("loss"), metrics, held_out.num_rows, targets, errors)


def _measured(objective: Objective, totals: Totals) -> dict[str, float]:
    return {"loss": objective.total(totals), **objective.metrics(totals)}


def _passes(data: Axis, rows: int, micro_batch: int) -> list[list[int]]:
    """The rows of each pass of this rank. Every rank has the same number of passes, so some may be empty."""
    own = list(range(data.index, rows, data.size))
    number = math.ceil(math.ceil(rows / data.size) / micro_batch)
    return [own[index * micro_batch : (index + 1) * micro_batch] for index in range(number)]


def _measure(
    model: nn.Module, objective: Objective, passes: Sequence[list[int]], held_out: HeldOut, mesh: Mesh
) -> tuple[Sums, dict[str, float], list[Totals]]:
    """The sums of this rank, its numbers of targets, and both for each pass."""
    sums = Sums(mesh.device)
    counts = dict.fromkeys(objective.weights, 0.0)
    each: list[tuple[Measured, dict[str, float]]] = []
    with _evaluating(model):
        for rows in passes:
            batch = held_out.pick(rows or [0])
            measured = objective.measure(model, to_device(batch, mesh.device))
            if not rows:
                measured = _nothing(measured)
            else:
                targets = objective.counts(batch)
                counts = {term: counts[term] + count for term, count in targets.items()}
                each.append((measured, targets))
            sums.add(measured)
            BEAT.alive()
    return sums, counts, [_on_host(measured, targets) for measured, targets in each]


def _on_host(measured: Measured, counts: dict[str, float]) -> Totals:
    losses = {term: float(loss) for term, loss in measured.losses.items()}
    return Totals(losses, {name: value.detach().cpu().double() for name, value in measured.observed.items()}, counts)


def _added(parts: Sequence[Totals]) -> Totals:
    """What the ranks that share the rows of a pass have measured, together."""
    first, *others = parts
    for part in others:
        first = Totals(
            {term: loss + part.losses[term] for term, loss in first.losses.items()},
            {name: value + part.observed[name] for name, value in first.observed.items()},
            {term: count + part.counts[term] for term, count in first.counts.items()},
        )
    return first


def _nothing(measured: Any) -> Any:
    """Zero sums, for a pass that only takes part in collectives."""
    empty = {name: torch.zeros_like(value) for name, value in measured.observed.items()}
    return type(measured)({term: torch.zeros_like(loss) for term, loss in measured.losses.items()}, empty)


def _collect(
    model: Any,
    objective: Objective,
    passes: Sequence[list[int]],
    held_out: HeldOut,
    device: torch.device,
    *,
    synchronised: bool,
) -> list[tuple[int, Any]]:
    """(row, value that the objective collected from it) for this rank's rows."""
    found: list[tuple[int, Any]] = []
    inner = getattr(model, "module", model)
    with _evaluating(model):
        for rows in passes:
            batch = to_device(held_out.pick(rows or [0]), device)
            collected = objective.collect(inner, batch, synchronised=synchronised)
            found += zip(rows, collected, strict=False)
            BEAT.alive()
    return found


def _in_order(by_rank: Sequence[list[tuple[int, Any]]]) -> list[Any]:
    return [value for _, value in sorted((item for own in by_rank for item in own), key=lambda item: item[0])]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Context without gradients and dropout."""
    was_training = model.training
    _set_training(model, False)
    try:
        with torch.no_grad():
            yield
    finally:
        _set_training(model, was_training)


def _set_training(model: nn.Module, training: bool) -> None:
    """Set the mode of the model. DeepSpeed's engine only sets its module's flag, but objectives read the engine's."""
    model.train(training)
    model.training = training


class EvaluateHook(Hook):
    """Evaluates the held-out rows and adds the metrics to the step's record."""

    name = "evaluate"

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        objective: Objective,
        held_out: HeldOut,
        mesh: Mesh,
        *,
        micro_batch: int,
        events: EventLog,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        self._engine, self._objective, self._held_out, self._mesh = engine, objective, held_out, mesh
        self._micro_batch, self._events = micro_batch, events
        self.errors: dict[str, float] = {}
        """Standard errors of the latest evaluation's metrics, by name."""

    def on_step(self, record: StepRecord) -> None:
        """Add the evaluation's metrics to the record."""
        started = time.monotonic()
        collects = self._objective.rows_to_collect(self._held_out.num_rows) > 0
        with ready_to_generate(self._engine, self._mesh) if collects else nullcontext() as together:
            result = evaluate(
                self._engine,
                self._objective,
                self._held_out,
                self._mesh,
                micro_batch=self._micro_batch,
                synchronised=together is not None,
            )
        self.errors = result.errors
        record.add({eval_loss(): result.loss})
        record.add({f"eval/validation/{name}": value for name, value in result.metrics.items()})
        self._events.event(
            Evaluated(
                step=record.step,
                loss=result.loss,
                metrics=result.metrics,
                rows=result.rows,
                seconds=time.monotonic() - started,
            )
        )
