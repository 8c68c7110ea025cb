"""Every small recipe trains on two Ray workers, on its real data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyard.recipe.catalog import shipped_recipes
from shardyard.recipe.load import load_recipe
from shardyard.recipe.schema import Recipe
from support.cli import Command
from support.cluster import ray_head

pytestmark = pytest.mark.slow

SHORT = (
    *("train.steps=3", "train.tokens=", "schedule.warmup=1", "checkpoint.every=3", "evaluate.every=3"),
    *("evaluate.rows=16", "sample.max_new_tokens=4", "tracking.wandb.mode=disabled"),
)


def _small() -> dict[str, Recipe]:
    """Recipes for two workers without a GPU, each after the one whose model it begins with."""
    loaded = {shipped.name: load_recipe(shipped.name).recipe for shipped in shipped_recipes()}
    small = {name: r for name, r in loaded.items() if r.cluster.workers == 2 and not r.cluster.gpus_per_worker}
    return dict(sorted(small.items(), key=lambda item: _depth(item[1], small)))


def _depth(recipe: Recipe, small: dict[str, Recipe]) -> int:
    """How many runs have to come before this one."""
    named = {name.removeprefix("run:") for name in _begins_with(recipe)}
    return max((1 + _depth(other, small) for other in small.values() if other.name in named), default=0)


def _begins_with(recipe: Recipe) -> list[str]:
    names = (recipe.model.pretrained, recipe.distillation.teacher)
    return [name for name in names if name is not None and name.startswith("run:")]


SMALL = _small()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One head for all, because starting one takes as long as training."""
    with ray_head(tmp_path_factory.mktemp("head")) as environment:
        yield environment


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_every_family_has_a_small_recipe() -> None:
    families = {name.partition("/")[0] for name in SMALL}
    assert families >= {"gpt", "bert", "moe", "seq2seq", "vision", "multimodal", "speech", "finetune"}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_trains(name: str, cluster: dict[str, str], runs: Path) -> None:
    overrides = [*SHORT, *(["evaluate.generate_rows=2"] if SMALL[name].evaluate.generate_rows else [])]
    flags = [word for override in overrides for word in ("-s", override)]
    with Command("launch", name, *flags, runs=runs, **cluster) as command:
        code, output = command.finish()
    assert code == 0, output
    folder = max(runs.glob(f"{SMALL[name].name}-*"), key=lambda path: path.stat().st_mtime)
    info = json.loads((folder / "run.json").read_text())
    assert (info["state"], info["world_size"]) == ("finished", 2)
    assert (folder / "final" / "model.safetensors").is_file()
