"""Standard errors of metrics: against the formulas for means and shares, and against many repetitions."""

from __future__ import annotations

import math
import random
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shardyard.cli.commands.trained import _with_errors
from shardyard.engine.hooks.evaluate import evaluate
from shardyard.engine.mesh import single_process
from shardyard.engine.standard_errors import FEWEST_GROUPS, jackknife, of_share
from shardyard.objectives.base import Measured, Objective, Totals


def group(loss: float, correct: float, targets: float) -> Totals:
    return Totals({"loss": loss}, {"correct": torch.tensor(correct, dtype=torch.float64)}, {"loss": targets})


def metrics(totals: Totals) -> dict[str, float]:
    return {
        "loss": totals.mean("loss"),
        "accuracy": totals.share("correct", "loss"),
        "perplexity": math.exp(totals.mean("loss")),
    }


def test_of_single_rows_it_is_the_formula_for_a_mean_and_a_share() -> None:
    generator = random.Random(1)
    losses = [generator.gauss(2.0, 0.7) for _ in range(191)]
    right = [float(generator.random() < 0.76) for _ in losses]
    errors = jackknife([group(a, b, 1) for a, b in zip(losses, right, strict=True)], metrics)
    assert errors["loss"] == pytest.approx(statistics.stdev(losses) / math.sqrt(191))
    assert errors["accuracy"] == pytest.approx(of_share(sum(right) / 191, 191))
    assert of_share(sum(right) / 191, 191) == pytest.approx(statistics.stdev(right) / math.sqrt(191))
    # The delta method: the derivative of e^x is e^x.
    mean = statistics.fmean(losses)
    assert errors["perplexity"] == pytest.approx(math.exp(mean) * errors["loss"], rel=0.01)


def test_rows_are_independent_and_targets_are_not() -> None:
    """The error measured in one evaluation is the spread of many, although the targets of a row resemble each other."""
    generator = random.Random(2)

    def evaluation() -> list[Totals]:
        rows = []
        for _ in range(60):
            length, level = generator.randint(5, 40), generator.gauss(2.0, 0.5)
            rows.append(group(sum(generator.gauss(level, 0.3) for _ in range(length)), 0.0, length))
        return rows

    many = [evaluation() for _ in range(200)]
    means = [sum(row.losses["loss"] for row in rows) / sum(row.counts["loss"] for row in rows) for rows in many]
    stated = statistics.fmean(jackknife(rows, metrics)["loss"] for rows in many[:20])
    assert stated == pytest.approx(statistics.stdev(means), rel=0.2)


def test_few_groups_state_nothing_and_empty_ones_do_not_count() -> None:
    groups = [group(1.0 + index, 0.0, 2) for index in range(FEWEST_GROUPS)]
    assert jackknife([*groups[:-1], group(0.0, 0.0, 0)], metrics) == {}
    assert jackknife([*groups, group(0.0, 0.0, 0)], metrics) == jackknife(groups, metrics)
    assert of_share(1.0, 1) == 0.0


def test_the_table_of_eval_shows_the_error_behind_its_metric() -> None:
    result = {"loss": 1.5, "accuracy": 0.75, "rows": 8, "loss_stderr": 0.125}
    assert _with_errors(result) == [("loss", "1.500000 ± 0.125000"), ("accuracy", "0.750000"), ("rows", "8")]


class Squares(Objective):
    """The square of each row's number; the share of even rows, and one metric that needs all rows."""

    shares_of_rows = frozenset({"late"})

    def counts(self, batch: dict[str, Tensor]) -> dict[str, float]:
        return {"loss": len(batch["x"])}

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Measured:
        x = batch["x"].double()
        return Measured({"loss": (x**2).sum()}, {"even": (x % 2 == 0).sum()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        return {"even": totals.share("even", "loss")}

    def rows_to_collect(self, rows: int) -> int:
        return rows

    def collect(self, model: Any, batch: dict[str, Tensor], *, synchronised: bool) -> list[Any]:
        return batch["x"].tolist()

    def score(self, collected: list[Any]) -> dict[str, float]:
        return {"late": sum(value >= 30 for value in collected) / len(collected)}


def test_an_evaluation_states_the_errors_of_its_metrics() -> None:
    rows: Any = SimpleNamespace(num_rows=40, pick=lambda indices: {"x": torch.tensor(indices)})
    process = single_process(torch.device("cpu"))
    found = evaluate(nn.Identity(), Squares(), rows, process, micro_batch=1)
    assert found.loss == pytest.approx(sum(x * x for x in range(40)) / 40)
    assert found.errors == pytest.approx(
        {
            "loss": statistics.stdev(x * x for x in range(40)) / math.sqrt(40),
            "even": of_share(0.5, 40),
            "late": of_share(0.25, 40),
        }
    )
    assert evaluate(nn.Identity(), Squares(), rows, process, micro_batch=8).errors.keys() == {"late"}
