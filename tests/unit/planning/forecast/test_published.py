"""Forecasts against speeds that others have published; docs/large/forecast.md has the table."""

from __future__ import annotations

import pytest

from shardyard.planning.forecast.compute import Kernels
from shardyard.planning.forecast.forecast import forecast, world_on
from shardyard.planning.forecast.hardware import hardware_of
from shardyard.planning.plan import make_plan
from shardyard.recipe.loading.load import parse_recipe
from support.forecast.published import END, FULL, MODELS, PAGE, POINTS, START, Point, predicted, table

TOLERANCE = 0.15


@pytest.mark.parametrize("point", POINTS, ids=lambda one: one.key.replace(" ", "-"))
def test_a_published_speed_is_met(point: Point) -> None:
    assert predicted(point) == pytest.approx(point.published, rel=TOLERANCE)


def test_most_of_the_points_were_not_fitted_to() -> None:
    held_out = [one for one in POINTS if not one.fitted]
    assert len(held_out) > len(POINTS) / 2
    assert len({one.source for one in held_out}) == 6
    errors = [abs(predicted(one) / one.published - 1) for one in held_out]
    assert sum(errors) / len(errors) < 0.07


def test_the_table_of_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition(START)[2].partition(END)[0].strip()
    assert shown == table(), "`python tests/support/forecast/published.py` writes it anew"


def test_a_recipe_is_forecast_as_the_published_runs_are() -> None:
    """The same model from a recipe and its plan, and by the parts with which published runs are described."""
    hardware, model = hardware_of("h100-80gb", 64, network="400gx8"), MODELS["llama 8b"]
    recipe = parse_recipe(
        {
            "name": "same",
            "model": {"family": "llama", "activation_checkpointing": True},
            "data": {"sequence_length": 8192, "train": [{"source": "python-docs"}]},
            "train": {"global_batch": 128, "micro_batch": 2, "steps": 10, "precision": "bf16"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "zero": {"stage": 3},
        }
    )
    plan = make_plan(recipe, model, world_on(hardware))
    kernels = Kernels(split_logits=True, split_norms=True, joined_gradients=True)
    found = forecast(recipe, plan, hardware, kernels=kernels).tokens_per_second_per_gpu
    point = Point("torchtitan", "llama 8b", "h100-80gb", 64, 8192, 2, 1, FULL, 1.0)
    assert found == pytest.approx(predicted(point), rel=1e-3)
