"""The gradient that the optimizer gets on two ranks, beside the fp32 sum of what each rank and micro-batch computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, distributed

from shardyard.engine.assemble import assemble
from shardyard.engine.mesh import make_mesh
from shardyard.engine.step import train_step
from shardyard.engine.world import Rank
from shardyard.recipe.schema import Recipe
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

# As runs of earlier versions did.
BF16, FP16 = ({"communication_data_type": name, "grad_accum_dtype": name} for name in ("bf16", "fp16"))
CASES: dict[str, dict[str, Any]] = {
    **{f"stage {stage}": {"zero": {"stage": stage}} for stage in range(4)},
    "rounded, stage 0": {"zero": {"stage": 0, **BF16}},
    "rounded, stage 2": {"zero": {"stage": 2, **BF16, "grad_accum_dtype": "fp32"}},
    "fp16, stage 0": {"zero": {"stage": 0}, "precision": "fp16"},
    "fp16, stage 2": {"zero": {"stage": 2}, "precision": "fp16"},
    "rounded, fp16, stage 1": {"zero": {"stage": 1, **FP16}, "precision": "fp16"},
}


def errors(rank: Rank, recipes: list[Recipe], runs: Path) -> list[float]:
    """Largest difference of the reduced gradient from the fp32 sum, relative to its norm, for each recipe."""
    get_accelerator().is_fp16_supported = lambda: True
    return [_error(rank, recipe, runs) for recipe in recipes]


def _error(rank: Rank, recipe: Recipe, runs: Path) -> float:
    job = tiny_job(recipe, runs, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    engine = session.engine
    sums: dict[str, Tensor] = {}
    reduced: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():

        def add(gradient: Tensor, name: str = name) -> None:
            sums[name] = sums.get(name, 0) + gradient.detach().float()

        parameter.register_hook(add)
    step = engine.step

    def look() -> None:
        if engine.is_gradient_accumulation_boundary():
            for name, parameter in engine.module.named_parameters():
                reduced[name] = safe_get_full_grad(parameter).float().clone()
        step()

    engine.step = look
    train_step(engine, session.objective, session.next_batch(), session.mesh)
    for one in sums.values():
        distributed.all_reduce(one)
    session.close()
    assert set(reduced) == set(sums)
    assert job.plan.accumulation > 1
    return max(
        float((reduced[name].view_as(one) - one / rank.world_size).norm() / one.norm()) for name, one in sums.items()
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    corpus, runs = write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("runs")
    recipes = [
        tiny_recipe(
            corpus,
            train={"precision": case.get("precision", "bf16"), "micro_batch": 1, "initial_loss_scale": 12},
            zero=case["zero"],
            cluster={"workers": 2},
        )
        for case in CASES.values()
    ]
    return dict(zip(CASES, run_ranks(2, errors, recipes, runs)[0], strict=True))


def test_gradients_are_summed_in_fp32_at_every_stage(measured: dict[str, float]) -> None:
    ours = {name: error for name, error in measured.items() if "rounded" not in name}
    assert len(ours) == 6
    assert max(ours.values()) < 1e-6, ours


def test_a_recipe_may_choose_fewer_bits(measured: dict[str, float]) -> None:
    """Sums are rounded to 8 or 11 significant bits, as they were in every run before there was a choice."""
    rounded = {name: error for name, error in measured.items() if "rounded" in name}
    assert len(rounded) == 3
    for name, error in rounded.items():
        least = 5e-5 if "fp16" in name else 4e-4
        assert least < error < 30 * least, rounded
