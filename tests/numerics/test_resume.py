"""A run that was stopped and resumed ends in bitwise the same losses and weights as one that was not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shardyard.engine.inference.load import load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS = 20
CASES = [
    ("fp32", 0, 2),
    ("fp32", 1, 2),
    ("fp32", 2, 2),
    ("fp32", 3, 2),
    ("bf16", 0, 1),
    ("bf16", 1, 2),
    ("bf16", 2, 2),
    ("bf16", 3, 2),
]


def jobs_in_order(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], tuple[RunFolder, RunFolder]]:
    """Case → run folders of the undisturbed and of the resumed run. With dropout, so that random states matter."""
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"))
    runs = tmp_path_factory.mktemp("runs")
    found = {}
    stopped: dict[int, list[Job]] = {1: [], 2: []}
    rest: dict[int, list[Job]] = {1: [], 2: []}
    for precision, stage, world_size in CASES:
        recipe = tiny_recipe(
            corpus,
            model={"dropout": 0.1},
            train={"precision": precision, "micro_batch": 2},
            zero={"stage": stage},
            cluster={"workers": world_size},
        )
        straight = tiny_job(recipe, runs, world_size=world_size)
        # Files that are written while training goes on hold what files hold that are written between two steps.
        beside = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"background": True})})
        halved = tiny_job(beside, runs, world_size=world_size, until=10)
        stopped[world_size] += [straight, halved]
        rest[world_size].append(replace(halved, until=None))
        found[precision, stage, world_size] = (straight.folder, halved.folder)
    for world_size in (1, 2):
        outcomes = run_ranks(world_size, jobs_in_order, stopped[world_size])
        assert set(outcomes[0]) == {"finished", "paused"}
        # New processes: nothing but the checkpoint connects the two halves.
        assert set(run_ranks(world_size, jobs_in_order, rest[world_size])[0]) == {"finished"}
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-zero{case[1]}-{case[2]}ranks")
def test_resuming_changes_no_bit(
    folders: dict[tuple[str, int, int], tuple[RunFolder, RunFolder]], case: tuple[str, int, int]
) -> None:
    straight, resumed = folders[case]
    ours, theirs = (
        [(line["step"], line["train/loss"]) for line in read_metrics(folder.metrics)] for folder in (straight, resumed)
    )
    assert len(ours) == STEPS
    assert ours == theirs
    weights = [load_file(folder.path / "final" / "model.safetensors") for folder in (straight, resumed)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    attempts = [event for event in _events(resumed) if event["kind"] == "attempt"]
    assert [event["resumed_step"] for event in attempts] == [None, 10]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-zero{case[1]}-{case[2]}ranks")
def test_the_exported_model_measures_what_the_run_measured(
    folders: dict[tuple[str, int, int], tuple[RunFolder, RunFolder]], case: tuple[str, int, int]
) -> None:
    folder = folders[case][0]
    own = read_metrics(folder.metrics)[-1]["eval/validation/loss"]
    assert load_trained(folder).evaluate()["loss"] == pytest.approx(own, rel=1e-5)
    # The newest checkpoint holds the same weights, consolidated without an engine.
    assert load_trained(folder, STEPS).evaluate()["loss"] == pytest.approx(own, rel=1e-5)


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder.events).read_text().splitlines()]


def test_every_stage_records_the_same_gradient_norm(
    folders: dict[tuple[str, int, int], tuple[RunFolder, RunFolder]],
) -> None:
    """Before clipping, averaged over ranks; later steps drift apart by rounding."""
    norms = {
        stage: [line["train/grad_norm"] for line in read_metrics(folders["fp32", stage, 2][0].metrics)]
        for stage in range(4)
    }
    assert len(norms[0]) == STEPS
    for stage in (1, 2, 3):
        assert norms[stage][:5] == pytest.approx(norms[0][:5], rel=1e-5)
