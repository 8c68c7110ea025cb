"""Every small recipe trains on two Ray workers, on its real data, by the command that a person types.

A cluster that is there already spares each launch the start of a Ray of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, list_runs, read_metrics
from support.cli import Command
from support.cluster import ray_head

pytestmark = pytest.mark.slow

# What a step computes is the recipe's, but of few rows: a CPU without units for half precision takes up to 30 s for
# a step of some of them.
SHORT = (
    *("train.steps=3", "train.global_batch=8", "train.tokens=", "schedule.warmup=1", "checkpoint.every=3"),
    *("evaluate.every=3", "evaluate.rows=16", "sample.max_new_tokens=4", "tracking.wandb.mode=disabled"),
)


def _small() -> dict[str, Recipe]:
    """Recipes for two workers without a GPU."""
    loaded = {shipped.name: load_recipe(shipped.name).recipe for shipped in shipped_recipes()}
    return {name: r for name, r in loaded.items() if r.cluster.workers == 2 and not r.cluster.gpus_per_worker}


SMALL = _small()


def _short(name: str) -> list[str]:
    return [*SHORT, *(["evaluate.generate_rows=2"] if SMALL[name].evaluate.generate_rows else [])]


def _before(name: str) -> list[str]:
    """Recipes whose runs this one begins with."""
    recipe = SMALL[name]
    runs = {run.removeprefix("run:") for run in (recipe.model.pretrained, recipe.distillation.teacher) if run}
    return [other for other, candidate in SMALL.items() if candidate.name in runs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RunFolder]]:
    """Launches a recipe after those that it begins with, each once; returns its run."""
    folder = tmp_path_factory.mktemp("recipes")
    with ray_head(folder) as cluster:

        @cache
        def train(name: str) -> RunFolder:
            for other in _before(name):
                train(other)
            options = [part for override in _short(name) for part in ("-s", override)]
            with Command("launch", name, *options, runs=folder / "runs", **cluster) as command:
                code, output = command.finish()
            assert code == 0, output
            (run,) = [run for run in list_runs(folder / "runs") if run.info().name == SMALL[name].name]
            return run

        yield train


def test_every_family_has_a_small_recipe() -> None:
    families = {name.partition("/")[0] for name in SMALL}
    assert families >= {"gpt", "bert", "moe", "seq2seq", "vision", "multimodal", "speech", "finetune"}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_trains(name: str, trained: Callable[[str], RunFolder]) -> None:
    run = trained(name)
    info = run.info()
    assert info.state == "finished"
    assert [rank for place in info.placement or [] for rank in place["ranks"]] == [0, 1]
    steps = [line["step"] for line in read_metrics(run.metrics)]
    assert max(steps) == 3
    assert any("eval/validation/loss" in line for line in read_metrics(run.metrics))
    assert (run.path / "final" / "model.safetensors").is_file()
