"""Recipes of published sizes, narrow, on four ranks: they load, plan, shard, train and export, as planned."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors import safe_open

from shardyard.engine.job import Job
from shardyard.engine.memory.measured import read_allocated
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.launch.dry_run.comparison import Compared, compared
from shardyard.launch.dry_run.narrow_recipe import narrow_recipe
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.precision import with_precision
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job

pytestmark = pytest.mark.slow

RANKS = 4
RECIPES = ("finetune/llama3-8b-sft", "gpt/llama2-70b", "gpt/gpt3-175b", "moe/deepseek-v3")
# An encoder with saved weights that reads several texts a row; a step that takes less than a hash of the weights; and
# a teacher, with buckets of stage 2 that come after the logits.
SMALL = ("finetune/rerank-docstrings", "finetune/glosses-lora", "finetune/distil-quickstart")


@dataclass(frozen=True)
class Dry:
    """A recipe, its narrow copy, and the job that has trained it."""

    given: Recipe
    job: Job

    def compared(self) -> dict[str, Compared]:
        return {one.part: one for one in compared(self.job.plan.memory, read_allocated(self.job.folder))}


def _train(rank: Rank, jobs: list[str]) -> list[str]:
    return [run_rank(pickle.loads(Path(path).read_bytes()), rank) for path in jobs]


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dry]:
    """All of them, trained one after the other by the same ranks."""
    folder = tmp_path_factory.mktemp("dry")
    found, files = {}, []
    for name in (*RECIPES, *SMALL):
        given, own = load_recipe(name).recipe, folder / name.replace("/", "-")
        narrow = with_precision(narrow_recipe(given, RANKS, own, folder).recipe, "bf16")
        found[name] = Dry(given, replace(tiny_job(narrow, own / "runs", world_size=RANKS), measure=True))
        files.append(own / "job")
        files[-1].write_bytes(pickle.dumps(found[name].job))
    assert run_ranks(RANKS, _train, [str(path) for path in files]) == [["finished"] * len(files)] * RANKS
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_the_narrow_recipe_trains_and_is_exported(name: str, dry: dict[str, Dry]) -> None:
    recipe, folder = dry[name].job.recipe, dry[name].job.folder
    assert (recipe.zero.stage, recipe.train.precision) == (dry[name].given.zero.stage, "bf16")
    assert recipe.model.activation_checkpointing
    assert [line["step"] for line in read_metrics(folder.metrics)] == [1, 2, 3, 4]
    config = json.loads((folder.final / "config.json").read_text())
    assert config["model_type"] == recipe.model.family
    assert any(folder.final.glob("*.safetensors"))


def test_pretrained_weights_are_loaded_from_several_files(dry: dict[str, Dry]) -> None:
    weights = Path(str(dry["finetune/llama3-8b-sft"].job.recipe.model.pretrained))
    files = json.loads((weights / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(files.values())) > 1
    # Their spread is another than that of fresh weights, and a few steps at 2e-5 change nothing of it.
    name = "model.layers.0.mlp.up_proj.weight"
    with safe_open(weights / files[name], "pt") as before:
        given = before.get_tensor(name).float()
    (exported,) = dry["finetune/llama3-8b-sft"].job.folder.final.glob("*.safetensors")
    with safe_open(exported, "pt") as after:
        assert (after.get_tensor(name).float() - given).abs().max() < 1e-3


def test_deepseek_keeps_its_layers_and_experts(dry: dict[str, Dry]) -> None:
    job = dry["moe/deepseek-v3"].job
    config = json.loads((job.folder.final / "config.json").read_text())
    kept = {name: config[name] for name in ("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group")}
    assert kept == {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
    assert (config["first_k_dense_replace"], config["num_hidden_layers"]) == (3, 5)
    assert config["n_shared_experts"] == 1


@pytest.mark.parametrize("name", RECIPES)
def test_the_plan_knows_the_model_states(name: str, dry: dict[str, Dry]) -> None:
    parts = dry[name].compared()
    for part in ("gradients", "optimizer"):
        assert parts[part].ratio == pytest.approx(1.0, abs=0.02), parts


@pytest.mark.parametrize("name", [*RECIPES, *SMALL])
def test_the_plan_expects_what_is_allocated(name: str, dry: dict[str, Dry]) -> None:
    parts = dry[name].compared()
    assert parts["all"].ratio == pytest.approx(1.0, abs=0.1), parts
