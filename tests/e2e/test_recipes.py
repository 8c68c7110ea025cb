"""Every small recipe trains on two Ray workers, on its real data.

One start of Ray Train carries out many recipes one after the other, because starting workers takes longer than three
steps; `test_launch.py` has the way from the command line to one recipe.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from shardyard.engine.run import Job
from shardyard.launch.ray.worker import train_worker
from shardyard.launch.run.initial import locate
from shardyard.launch.run.prepare import prepare
from shardyard.launch.run.world import bf16_here
from shardyard.planning.plan import World, fixed
from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.recipe.loading.load import dump_recipe, load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, read_metrics

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


def _short(name: str) -> Recipe:
    decoded = ["evaluate.generate_rows=2"] if SMALL[name].evaluate.generate_rows else []
    return load_recipe(name, [*SHORT, *decoded]).recipe


def _wave(recipe: Recipe) -> tuple[int, bool]:
    """Recipes that begin with a run come after it; spread experts keep process groups, so they are by themselves."""
    names = {name.removeprefix("run:") for name in (recipe.model.pretrained, recipe.distillation.teacher) if name}
    before = [other for other in SMALL.values() if other.name in names]
    return max((_wave(other)[0] + 1 for other in before), default=0), recipe.model.experts.parallel > 1


def _carry_out(config: dict[str, Any]) -> None:
    for job in config["jobs"]:
        train_worker({"job": pickle.dumps(job)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunFolder | Exception]]:
    """The run of each recipe that is asked for and of those that it begins with, or why it failed."""
    runs = tmp_path_factory.mktemp("runs")
    found: dict[str, RunFolder | Exception] = {}
    ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    try:
        for wave in sorted({_wave(recipe) for recipe in SMALL.values()}):
            names = [name for name, recipe in SMALL.items() if _wave(recipe) == wave]
            found |= _train(names, runs, tmp_path_factory.mktemp("ray"))
        yield found
    finally:
        ray.shutdown()


def _train(names: list[str], runs: Path, scratch: Path) -> dict[str, RunFolder | Exception]:
    jobs = {name: _job(name, runs) for name in names}
    trainer = TorchTrainer(
        _carry_out,
        train_loop_config={"jobs": list(jobs.values())},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1.0}),
        run_config=RunConfig(name="recipes", storage_path=str(scratch)),
    )
    failure: Exception | None = None
    try:
        trainer.fit()
    except train.TrainingFailedError as error:
        failure = error
    done: dict[str, RunFolder | Exception] = {}
    for name, job in jobs.items():
        if job.folder.info().outcome == "finished":
            job.folder.update(state="finished")
            done[name] = job.folder
        else:
            done[name] = failure or AssertionError(f"{name} did not finish")
    return done


def _job(name: str, runs: Path) -> Job:
    recipe, _ = locate(_short(name), runs)
    plan = prepare(recipe, World(size=2, gpu=False, bf16=bf16_here(gpu=False)))
    recipe = fixed(recipe, plan)
    folder = RunFolder.create(runs, recipe.name, dump_recipe(recipe), dump_recipe(recipe))
    os.makedirs(folder.path / "logs", exist_ok=True)
    return Job(recipe, plan, folder)


def test_every_family_has_a_small_recipe() -> None:
    families = {name.partition("/")[0] for name in SMALL}
    assert families >= {"gpt", "bert", "moe", "seq2seq", "vision", "multimodal", "speech", "finetune"}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_trains(name: str, trained: dict[str, RunFolder | Exception]) -> None:
    run = trained[name]
    if isinstance(run, Exception):
        raise run
    steps = [line["step"] for line in read_metrics(run.metrics)]
    assert max(steps) == 3
    assert any("eval/validation/loss" in line for line in read_metrics(run.metrics))
    assert (run.path / "final" / "model.safetensors").is_file()
