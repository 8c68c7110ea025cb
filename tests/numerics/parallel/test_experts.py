"""Mixtures of experts: the same training whatever ranks the experts live on, and whole weights at the end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed
from transformers import AutoModelForCausalLM

from shardyard.engine.assemble import assemble
from shardyard.engine.checkpoint.expert_weights import parallel_layers
from shardyard.engine.checkpoint.weights import consolidated_weights
from shardyard.engine.inference.load import export_checkpoint, load_trained
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job, run_rank
from shardyard.engine.step import train_step
from shardyard.engine.world import Rank
from shardyard.recipe.schema import Recipe
from support.ranks import run_ranks
from support.tiny import CONFIGS, tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
STEPS = 20
_SMALL = CONFIGS["llama"]
_DEEPSEEK = _SMALL | {
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": CONFIGS["mixtral"],
    "qwen2_moe": _SMALL
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_moe": _SMALL
    | {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 24, "norm_topk_prob": False},
    "deepseek_v2": _DEEPSEEK | {"topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": _DEEPSEEK | {"n_group": 2, "topk_group": 1},
}


def moe(
    corpus: Path, parallel: int, *, family: str = "mixtral", stage: int = 2, workers: int = 2, **more: Any
) -> Recipe:
    model = {
        "family": family,
        "config": FAMILIES[family],
        "experts": {"balance": 0.02, "z_loss": 1e-3},
    }
    return tiny_recipe(
        corpus, model=model, parallel={"expert": parallel}, zero={"stage": stage}, cluster={"workers": workers}, **more
    )


def curves(rank: Rank, recipes: list[Recipe], runs: Path, steps: int = STEPS) -> list[list[dict[str, float]]]:
    """For each recipe loss, gradient norm and metrics of experts of its first steps."""
    return [_curve(rank, recipe, runs, steps) for recipe in recipes]


def _curve(rank: Rank, recipe: Recipe, runs: Path, steps: int) -> list[dict[str, float]]:
    job = tiny_job(recipe, runs, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    for _, layer in parallel_layers(session.engine.module):
        # DeepSpeed makes a group of its own for its layers. It has to be the one that the mesh says.
        assert distributed.get_process_group_ranks(layer.ep_group) == list(session.mesh.expert.ranks)
    found = []
    for step in range(steps):
        session.learning_rate.set(session.factor(step))
        result = train_step(session.engine, session.objective, session.next_batch(), session.mesh)
        metrics = session.objective.train_metrics(result.totals)
        found.append({"loss": result.loss, "grad_norm": result.grad_norm or 0.0, **metrics})
    session.close()
    return found


def _agree(ours: list[dict[str, float]], reference: list[dict[str, float]]) -> None:
    """The gradient of the first step to rounding; later ones feel each token that a rounding sends elsewhere."""
    for name, tolerance in (
        ("loss", TOLERANCE),
        ("grad_norm", 1e-3),
        ("moe/balance_loss", 1e-3),
        ("moe/entropy", 1e-3),
    ):
        differences = [abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(ours, reference, strict=True)]
        assert differences[0] < 1e-6, f"{name} of the first step: relative difference {differences[0]:.2e}"
        assert max(differences) < tolerance, f"{name}: relative difference {max(differences):.2e}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_experts_over_two_ranks_follow_the_curve_of_experts_on_each(corpus: Path, tmp_path: Path) -> None:
    """20 steps at each stage. Adam hides a wrong scale of the gradient, so SGD takes part, clipped at every step."""
    sgd = {"optimizer": {"name": "sgd", "lr": 0.5}, "train": {"gradient_clipping": 0.5}}
    cases: list[dict[str, Any]] = [{"stage": stage} for stage in (1, 2, 3)]
    cases += [{"stage": stage, **sgd} for stage in (1, 3)]
    cases += [{"stage": 2, "train": {"micro_batch": 2}, "optimizer": {"name": "rmsprop", "lr": 1e-3}}]
    recipes = [moe(corpus, parallel, **case) for case in cases for parallel in (1, 2)]
    found = run_ranks(2, curves, recipes, tmp_path)[0]
    for alone, spread in zip(found[::2], found[1::2], strict=True):
        assert alone[-1]["loss"] < alone[0]["loss"] - 0.5
        assert min(step["grad_norm"] for step in alone) > 0.5, "nothing is clipped"
        _agree(spread, alone)


def test_copies_of_experts_on_four_ranks_agree(corpus: Path, tmp_path: Path) -> None:
    """Two ranks share experts and two more hold their copies, so gradients of experts are averaged over pairs."""
    sgd = {"optimizer": {"name": "sgd", "lr": 0.5}, "train": {"gradient_clipping": 0.5}}
    cases: list[dict[str, Any]] = [{"parallel": 1}, {"parallel": 2}, {"parallel": 2, "stage": 3}, {"parallel": 4}]
    recipes = [moe(corpus, workers=4, **case, **sgd) for case in cases]
    alone, *spread = run_ranks(4, curves, recipes, tmp_path, 5)[0]
    for found in spread:
        _agree(found, alone)


def weights_and_curves(
    rank: Rank, recipes: list[Recipe], runs: Path
) -> list[tuple[dict[str, Tensor], list[dict[str, float]]]]:
    """For each recipe its initial weights by name, and its first steps."""
    return [(_initial_weights(rank, recipe, runs), _curve(rank, recipe, runs, 6)) for recipe in recipes]


def _initial_weights(rank: Rank, recipe: Recipe, runs: Path) -> dict[str, Tensor]:
    job = tiny_job(recipe, runs, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    weights = {
        name: tensor.clone() for name, tensor in (consolidated_weights(session.engine, session.mesh) or {}).items()
    }
    session.close()
    return weights


def test_every_family_starts_from_the_same_weights_and_follows_its_own_curve(corpus: Path, tmp_path: Path) -> None:
    """What AutoEP computes is what transformers computes, groups, sigmoids and shared experts included; names too."""
    cases = [(family, 2) for family in FAMILIES] + [("mixtral", 3), ("deepseek_v3", 3)]
    sgd = {"optimizer": {"name": "sgd", "lr": 0.5}}
    recipes = [
        moe(corpus, parallel, family=family, stage=stage, **sgd) for family, stage in cases for parallel in (1, 2)
    ]
    found = run_ranks(2, weights_and_curves, recipes, tmp_path)[0]
    for case, (weights, alone), (spread_weights, spread) in zip(cases, found[::2], found[1::2], strict=True):
        assert weights.keys() == spread_weights.keys(), case
        assert all(torch.equal(weights[name], spread_weights[name]) for name in weights), case
        _agree(spread, alone)


def run_all(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


def _lines(job: Job) -> dict[int, dict[str, float]]:
    merged: dict[int, dict[str, float]] = {}
    for line in map(json.loads, job.folder.metrics.read_text().splitlines()):
        merged.setdefault(line["step"], {}).update(line)
    return merged


@pytest.fixture(scope="module")
def whole_runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Job, Job]]:
    """Stage → (a run of 8 steps, one that paused at step 4 and went on in new processes); experts over two ranks."""
    runs = tmp_path_factory.mktemp("runs")
    short = {
        "train": {"steps": 8},
        "schedule": {"warmup": 2},
        "checkpoint": {"every": 4, "keep": 5},
        "evaluate": {"every": 4, "rows": 8},
    }
    recipes = {stage: moe(corpus, 2, stage=stage, **short) for stage in (1, 2, 3)}
    found = {
        stage: (tiny_job(recipe, runs, world_size=2), tiny_job(recipe, runs, world_size=2, until=4))
        for stage, recipe in recipes.items()
    }
    first = run_ranks(2, run_all, [job for pair in found.values() for job in pair])[0]
    assert first == ["finished", "paused"] * 3
    resumed = {stage: (whole, dataclasses.replace(paused, until=None)) for stage, (whole, paused) in found.items()}
    assert run_ranks(2, run_all, [job for _, job in resumed.values()])[0] == ["finished"] * 3
    return resumed


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resumed_run_ends_bitwise_equal(whole_runs: dict[int, tuple[Job, Job]], stage: int) -> None:
    whole, resumed = (load_file(job.folder.path / "final" / "model.safetensors") for job in whole_runs[stage])
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_exported_model_gives_the_runs_own_metrics(whole_runs: dict[int, tuple[Job, Job]], stage: int) -> None:
    job, _ = whole_runs[stage]
    own = _lines(job)[8]
    model = AutoModelForCausalLM.from_pretrained(job.folder.path / "final")
    assert type(model).__name__ == "MixtralForCausalLM"
    measured = load_trained(job.folder).evaluate()
    assert measured["loss"] == pytest.approx(own["eval/validation/loss"], rel=1e-5)
    tables = [name for name in own if name.startswith("eval/validation/moe/tokens/")]
    assert len(tables) == 2 * 4
    for name in [*tables, "eval/validation/moe/load_max", "eval/validation/moe/entropy"]:
        assert measured[name.removeprefix("eval/validation/")] == pytest.approx(own[name], rel=1e-4), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_exports_with_all_its_experts(whole_runs: dict[int, tuple[Job, Job]], stage: int) -> None:
    job, _ = whole_runs[stage]
    loss = load_trained(job.folder, step=4).evaluate()["loss"]
    assert loss == pytest.approx(_lines(job)[4]["eval/validation/loss"], rel=1e-5)


def test_experts_in_shards_of_stage_3_leave_a_checkpoint_as_they_leave_the_run(corpus: Path, tmp_path: Path) -> None:
    """Four ranks: pairs hold the same experts, and each pair partitions its own."""
    short = {"train": {"steps": 2}, "schedule": {"warmup": 1}, "checkpoint": {"every": 2}}
    case: dict[str, Any] = {"workers": 4, "family": "qwen2_moe", "optimizer": {"name": "sgd", "lr": 0.5}, **short}
    recipes = [moe(corpus, 2, stage=3, **case), moe(corpus, 1, stage=1, **case)]
    jobs = [tiny_job(recipe, tmp_path, world_size=4) for recipe in recipes]
    assert run_ranks(4, run_all, jobs)[0] == ["finished"] * 2
    exported = load_file(export_checkpoint(jobs[0].folder, 2, tmp_path / "model") / "model.safetensors")
    final, alone = (load_file(job.folder.final / "model.safetensors") for job in jobs)
    assert exported.keys() == final.keys() == alone.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
    for name, tensor in alone.items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-4, atol=1e-6)


def test_each_record_has_the_balance_and_evaluations_alone_the_table(whole_runs: dict[int, tuple[Job, Job]]) -> None:
    lines = _lines(whole_runs[1][0])
    for step, line in lines.items():
        assert line["train/loss"] == pytest.approx(
            line["train/cross_entropy"] + 0.02 * line["moe/balance_loss"], abs=0.1
        ), step
        assert line["moe/dropped"] == 0
        assert line["moe/load_min"] <= 1 <= line["moe/load_max"]
        assert any("moe/tokens/" in name for name in line) == (step in (4, 8))
    table = {name: value for name, value in lines[8].items() if "moe/tokens/" in name}
    assert sum(table.values()) == 8 * 32 * 2 * 2, "rows × tokens × experts a token × layers"
