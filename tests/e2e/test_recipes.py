"""Every small recipe trains on two ranks, on its real data: some by the command that a person types, on Ray's workers.

Ray's workers do the same for each recipe, and import torch anew for each. So the others take all the same steps but
that one: their ranks are forked from a process that has imported everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from shardyard.engine.job import Job
from shardyard.engine.loop import Outcome
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.launch.run import carry_out
from shardyard.launch.run.driver import count_attempt
from shardyard.launch.run.plans import plan_new
from shardyard.launch.run.stop import Stop
from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, list_runs, read_metrics
from shardyard.tracking.run.lease import Lease
from support.cli import Command
from support.cluster import ray_head
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

# What a step computes is the recipe's, but of few rows: a CPU without units for half precision takes up to 30 s for
# a step of some of them.
SHORT = (
    *("train.steps=3", "train.global_batch=8", "train.tokens=", "schedule.warmup=1", "checkpoint.every=3"),
    *("evaluate.every=3", "evaluate.rows=16", "sample.max_new_tokens=4", "tracking.wandb.mode=disabled"),
)


# By the command: a chain of runs, experts over ranks, pictures, sounds, and a stage that shards weights.
LAUNCHED = (
    *("finetune/dpo-docstrings", "moe/mixtral-small", "multimodal/llava-emoji", "speech/prompts-en"),
    "gpt/llama-small",
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


def _run_rank(rank: Rank, job: Job) -> Outcome:
    return run_rank(job, rank)


def _on_forks(job: Job) -> Outcome:
    count_attempt(job)
    outcomes: list[Outcome] = run_ranks(job.plan.world.size, _run_rank, job)
    return outcomes[0]


def _train_on_forks(name: str, runs: Path) -> None:
    """What `shardyard launch` does, on forked ranks."""
    run = plan_new(load_recipe(name, _short(name)), runs)
    folder = run.create(runs)
    with pytest.MonkeyPatch.context() as patch, Lease.take(folder) as lease:
        patch.setattr(carry_out, "on_ray", _on_forks)
        assert carry_out.carry_out(run, folder, lease, stop=Stop()) == "finished"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RunFolder]]:
    """Trains a recipe after those that it begins with, each once; returns its run.

    A cluster that is there already spares each launch the start of a Ray of its own.
    """
    folder = tmp_path_factory.mktemp("recipes")
    runs = folder / "runs"
    with ray_head(folder) as cluster:

        @cache
        def train(name: str) -> RunFolder:
            for other in _before(name):
                train(other)
            if name in LAUNCHED:
                options = [part for override in _short(name) for part in ("-s", override)]
                with Command("launch", name, *options, runs=runs, **cluster) as command:
                    code, output = command.finish()
                assert code == 0, output
            else:
                _train_on_forks(name, runs)
            (run,) = [run for run in list_runs(runs) if run.info().name == SMALL[name].name]
            return run

        yield train


def test_every_family_has_a_small_recipe() -> None:
    families = {name.partition("/")[0] for name in SMALL}
    assert families >= {"gpt", "bert", "moe", "seq2seq", "vision", "multimodal", "speech", "finetune"}
    assert set(LAUNCHED) < set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_trains(name: str, trained: Callable[[str], RunFolder]) -> None:
    run = trained(name)
    info = run.info()
    assert info.state == "finished"
    if name in LAUNCHED:
        assert [rank for place in info.placement or [] for rank in place["ranks"]] == [0, 1]
    steps = [line["step"] for line in read_metrics(run.metrics)]
    assert max(steps) == 3
    assert any("eval/validation/loss" in line for line in read_metrics(run.metrics))
    assert (run.path / "final" / "model.safetensors").is_file()
