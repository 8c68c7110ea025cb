"""Optimizer states in files of a local disk: the losses, checkpoints and memory of runs without offloading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

# The matrices of a rank have to fill files of at least a mebibyte; the tied embeddings and positions are one more.
CONFIG = {"n_layer": 2, "n_head": 2, "n_embd": 256, "n_positions": 32}
Losses = list[tuple[int, float]]


def in_order(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


def losses(folder: RunFolder) -> Losses:
    return [(line["step"], line["train/loss"]) for line in read_metrics(folder.metrics)]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    corpus, disk = write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("disk")

    def recipe(workers: int, zero: dict[str, Any], precision: str = "fp32") -> Recipe:
        swapped = {"nvme_path": str(disk), "sub_group_size": 300_000} if zero.get("offload_optimizer") == "nvme" else {}
        return tiny_recipe(
            corpus,
            model={"config": CONFIG, "dropout": 0.0},
            optimizer={"lr": 1e-3},
            train={"precision": precision, "micro_batch": 2},
            zero={**zero, **swapped},
            cluster={"workers": workers},
            evaluate={"every": 20, "rows": 2},
            checkpoint={"every": 20},
        )

    return recipe


NVME = {"stage": 3, "offload_optimizer": "nvme"}


@pytest.fixture(scope="module")
def runs(make: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Losses]:
    """Losses by name; `resumed-*` stopped after ten steps of another run."""
    where = tmp_path_factory.mktemp("runs")

    def job(recipe: Recipe, **more: Any) -> Job:
        return tiny_job(recipe, where, world_size=recipe.cluster.workers, **more)

    def goes_on(stopped: Job, recipe: Recipe) -> Job:
        made = job(recipe)
        return replace(made, folder=stopped.folder, until=None)

    def train(ranks: int, jobs: list[Job]) -> None:
        assert set(run_ranks(ranks, in_order, jobs)[0]) <= {"finished", "paused"}

    one, two = make(1, NVME), make(2, NVME)
    plain = [job(make(1, {"stage": 3})), job(make(2, {"stage": 3}))]
    swapped = [job(one), job(two)]
    halves = [job(make(1, zero, "bf16")) for zero in ({"stage": 3}, NVME)]
    half = {name: job(two, until=10) for name in ("same", "one rank", "stage 1")}
    back = job(make(2, {"stage": 1}), until=10)
    train(1, [plain[0], swapped[0], *halves])
    train(2, [plain[1], swapped[1], *half.values(), back])
    train(1, [goes_on(half["one rank"], one)])
    train(2, [goes_on(half["same"], two), goes_on(half["stage 1"], make(2, {"stage": 1})), goes_on(back, two)])
    found = {"plain-1": plain[0], "plain-2": plain[1], "nvme-1": swapped[0], "nvme-2": swapped[1], "to nvme": back}
    found |= {"plain-bf16": halves[0], "nvme-bf16": halves[1]}
    return {name: losses(each.folder) for name, each in (found | half).items()}


@pytest.mark.parametrize("which", ["1", "2", "bf16"])
def test_states_in_files_train_as_states_in_memory(runs: dict[str, Losses], which: str) -> None:
    ours, theirs = runs[f"nvme-{which}"], runs[f"plain-{which}"]
    assert len(ours) == 20
    assert ours[-1][1] < ours[0][1] - 0.5, f"it does not learn: {ours}"
    assert [loss for _, loss in ours] == pytest.approx(
        [loss for _, loss in theirs], rel=5e-3 if which == "bf16" else 1e-5
    )


def test_a_resumed_run_is_bitwise_equal(runs: dict[str, Losses]) -> None:
    assert runs["same"] == runs["nvme-2"]


@pytest.mark.parametrize("name", ["one rank", "stage 1", "to nvme"])
def test_a_checkpoint_fits_other_ranks_stages_and_places(runs: dict[str, Losses], name: str) -> None:
    ours, theirs = runs[name], runs["nvme-2"]
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours[-10:]] == pytest.approx([loss for _, loss in theirs[-10:]], rel=1e-4)
