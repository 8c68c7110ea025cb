"""A time budget: its steps are measured once; a resume and a repetition then train exactly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from shardyard.engine import budget
from shardyard.engine.budget import Pace, fix_steps, steps_within
from shardyard.engine.mesh import single_process
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.launch.run.prepare import as_fixed
from shardyard.planning.plan import make_plan
from shardyard.recipe.loading.load import parse_recipe
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

MOST = 1_000_000
STAGES = (2, 3)


def test_steps_and_their_evaluations_fit_the_time() -> None:
    pace = Pace(step_seconds=0.5, evaluation_seconds=2.0)
    assert steps_within(100.0, pace, 1000, lambda steps: 0) == 200
    assert steps_within(100.0, pace, 50, lambda steps: 10) == 50
    # Ten evaluations take 20 of the 100 seconds.
    assert steps_within(100.0, pace, 1000, lambda steps: 10) == 160
    found = steps_within(100.0, pace, 1000, lambda steps: -(-steps // 7))
    assert 0.5 * found + 2 * -(-found // 7) <= 100.0
    assert steps_within(-3.0, pace, 1000, lambda steps: 10) == 1


def test_a_run_of_a_few_steps_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "measure", lambda *_: pytest.fail("measured"))
    recipe = tiny_recipe(write_corpus(tmp_path), train={"steps": 5, "minutes": 3.0}, schedule={"warmup": 1})
    job = fix_steps(tiny_job(recipe, tmp_path / "runs"), single_process(torch.device("cpu")))
    assert (job.plan.steps, job.recipe.train.minutes) == (5, None)
    assert "5 steps are too few to measure a budget of 3 minutes" in job.folder.resolved.read_text()


def run_all(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[RunFolder, RunFolder]]:
    """Stage → the folder of a run that was paused and resumed, and of one that repeats it from its resolved.yaml."""
    corpus, runs = write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("runs")
    paused = []
    for stage in STAGES:
        recipe = tiny_recipe(
            corpus,
            model={"dropout": 0.1},
            train={"steps": MOST, "minutes": 0.015},
            schedule={"name": "wsd", "warmup": 0.1, "decay_fraction": 0.3},
            zero={"stage": stage},
            checkpoint={"every": MOST},
            evaluate={"every": 0.5},
        )
        paused.append(tiny_job(recipe, runs, world_size=2, until=1))
    run_ranks(2, run_all, paused)
    rest, again = [], []
    for job in paused:
        recipe = as_fixed(job.recipe, job.folder)
        plan = make_plan(recipe, job.plan.architecture, job.plan.world)
        rest.append(replace(job, recipe=recipe, plan=plan, until=None))
        resolved = YAML(typ="safe", pure=True).load(job.folder.resolved.read_text(encoding="utf-8"))
        again.append(tiny_job(parse_recipe(resolved), runs, world_size=2))
    assert set(run_ranks(2, run_all, [*rest, *again])[0]) == {"finished"}
    return {stage: (one.folder, other.folder) for stage, one, other in zip(STAGES, rest, again, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_resume_and_a_repetition_train_the_steps_that_were_measured(
    budgeted: dict[int, tuple[RunFolder, RunFolder]], stage: int
) -> None:
    resumed, repeated = budgeted[stage]
    recipe = as_fixed(parse_recipe(YAML(typ="safe", pure=True).load(resumed.recipe.read_text())), resumed)
    steps = recipe.train.steps
    assert steps is not None
    assert 1 <= steps < MOST
    assert recipe.train.minutes is None
    assert f'"total_steps": {steps}' in resumed.info_file.read_text()
    (length,) = [line for line in resumed.events.read_text().splitlines() if '"length"' in line]
    assert f"0.015 minutes hold {steps} of {MOST} steps, at " in length
    losses = [
        [(line["step"], line["train/loss"], line["train/lr"]) for line in read_metrics(folder.metrics)]
        for folder in (resumed, repeated)
    ]
    assert losses[0] == losses[1]
    assert losses[0][-1][0] == steps
    ours, theirs = (load_file(folder.path / "final" / "model.safetensors") for folder in (resumed, repeated))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
