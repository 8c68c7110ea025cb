"""Sums stay on the device, in fp64, and the host reads none of them between micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from shardyard.data.stream.loader import Batch
from shardyard.engine import step, sums
from shardyard.engine.mesh import single_process
from shardyard.engine.sums import ArrivingSums, Observed, Sums
from shardyard.objectives.base import Measured, Totals
from shardyard.objectives.causal_lm.loss import CausalLM
from shardyard.objectives.routing import Route
from shardyard.recipe.schema import Experts

CPU, META = torch.device("cpu"), torch.device("meta")


def test_sums_are_those_of_python_floats_to_the_last_bit() -> None:
    torch.manual_seed(0)
    losses = [torch.rand(()) * 10**n for n in range(-3, 6)]
    tables = [torch.randint(0, 9, (2, 3)) for _ in losses]
    own = Sums(CPU)
    for loss, table in zip(losses, tables, strict=True):
        own.add(Measured({"loss": loss}, {"table": table, "half": loss.bfloat16()}))
    totals, extras, more = own.over_ranks(single_process(CPU), [3.0, 4.0]).to_host(
        {"loss": torch.tensor(7.0)}, torch.tensor(0.1)
    )
    assert totals.losses["loss"] == sum(float(loss) for loss in losses)
    assert totals.observed["half"] == sum(float(loss.bfloat16()) for loss in losses)
    assert totals.observed["table"].tolist() == torch.stack(tables).sum(0).tolist()
    assert totals.observed["table"].dtype == torch.float64
    assert (totals.counts, extras, more) == ({"loss": 7.0}, [3.0, 4.0], [float(torch.tensor(0.1))])


def test_what_was_observed_travels_when_it_is_read_and_then_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    to_cpu = sums._to_cpu

    def counted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies.append(len(tensors))
        return to_cpu(tensors)

    monkeypatch.setattr(sums, "_to_cpu", counted)
    observed = Observed({"a": torch.ones((), dtype=torch.float64), "b": torch.ones(2, 2, dtype=torch.float64)})
    assert ("a" in observed, "c" in observed, list(observed), len(observed)) == (True, False, ["a", "b"], 2)
    assert copies == []
    assert (observed["b"].tolist(), float(observed["a"])) == ([[1.0, 1.0], [1.0, 1.0]], 1.0)
    assert copies == [2]


class OnMeta:
    """What a step asks of an engine; a tensor of the meta device has no values that anybody could wait for."""

    optimizer = None
    training = True

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, *, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=torch.empty(*input_ids.shape, 7, device=META))

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> None:
        assert (loss.device, loss.dtype, scale_wrt_gas) == (META, torch.float32, False)

    def step(self) -> None:
        self.steps += 1

    def zero_optimization(self) -> bool:
        return True

    def get_global_grad_norm(self) -> float:
        return 2.0

    def was_step_applied(self) -> bool:
        return True


def test_no_micro_batch_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four micro-batches of a mixture of experts on a device without values: reading one raises."""
    route = Route(torch.empty(64, 4, device=META), torch.empty(64, 2, dtype=torch.int64, device=META))
    objective = CausalLM(experts=Experts(balance=0.01, z_loss=0.01), has_experts=True)
    monkeypatch.setattr("shardyard.objectives.causal_lm.loss.watching", lambda _: nullcontext([route]))
    reads = []
    totals = Totals({"balance": 1.0, "loss": 4.0, "z": 1.0}, {}, {"balance": 1.0, "loss": 2.0, "z": 1.0})

    def read(*given: object) -> tuple[Totals, list[float], list[float]]:
        reads.append(given)
        return totals, [0.0], [2.0]

    monkeypatch.setattr(ArrivingSums, "read", read)
    ids = torch.zeros(2, 32, dtype=torch.int64)
    batch = Batch(({"input_ids": ids, "labels": ids, "position_ids": ids},) * 4, (), {})
    engine: Any = OnMeta()
    result = step.train_step(engine, objective, batch, single_process(META))
    assert (engine.steps, len(reads)) == (4, 1)
    assert (result.loss, result.grad_norm) == (pytest.approx(2.0 + 0.01 + 0.01), 2.0)


def test_a_loss_that_is_no_number_arrives_as_such() -> None:
    own = Sums(CPU)
    own.add(Measured({"loss": torch.tensor(torch.nan)}))
    own.add(Measured({"loss": torch.tensor(1.0)}))
    totals, _, _ = own.over_ranks(single_process(CPU)).to_host({"loss": 1.0})
    assert totals.losses["loss"] != totals.losses["loss"]
