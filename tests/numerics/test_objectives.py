"""Every objective trains the same at each ZeRO stage and on one or two ranks, resumes to the bit, and exports what it
measured."""

from __future__ import annotations

import gc
import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shardyard.engine.inference.load import load_trained
from shardyard.engine.inference.step_documents import documents_of_step
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.objectives import registry
from shardyard.objectives.registry import objective_spec
from shardyard.planning.micro_batch import with_logits_chunk
from shardyard.recipe.loading.load import parse_recipe
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks, sampled_stages
from support.tiny import copy_checkpoint, tiny_job

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
# One rank shards nothing below stage 3, so there it trains at the first stage and at the last.
ALONE = (0, 3)
# Where two ranks compute the logits of a few tokens at a time, and one rank all of them.
CHUNKED_STAGES = (1, 3)
# causal_lm has tests of its own (test_parity, test_resume), with more families, and so has audio_contrastive
# (test_speech_runs), because CLAP normalises over the rows of one rank.
OBJECTIVES = tuple(name for name in registry.OBJECTIVES if name not in ("causal_lm", "audio_contrastive"))
CASES = [(name, stage) for position, name in enumerate(OBJECTIVES) for stage in sampled_stages(position)]


@dataclass(frozen=True)
class Trained:
    """Where the same recipe trained: at once on one and on two ranks, and at stages that shard, the second half on two
    other ranks, from the checkpoint that the first two left in the middle."""

    alone: Job
    straight: Job
    broken: Job


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Trained]:
    """One set of processes a world size for all objectives that are asked for, because starting them takes longest."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    wanted = {item.callspec.params["objective"] for item in items}
    jobs = {case: _jobs(tmp_path_factory.mktemp(case[0]), *case) for case in CASES if case[0] in wanted}
    run_ranks(1, _run_all, [job.alone for (_, stage), job in jobs.items() if stage in ALONE])
    run_ranks(2, _run_all, [job.straight for job in jobs.values()])
    broken = [job for (_, stage), job in jobs.items() if stage]
    for job in broken:
        copy_checkpoint(job.straight, job.broken, job.straight.plan.steps // 2)
    run_ranks(2, _run_all, [job.broken for job in broken])
    return jobs


def _jobs(folder: Path, objective: str, stage: int) -> Trained:
    case = importlib.import_module(f"support.objectives.{objective}")
    fields = case.recipe_fields(case.write_data(folder))
    assert fields["objective"] == objective
    fields["zero"] = {"stage": stage}

    def job(name: str, world_size: int) -> Job:
        recipe = parse_recipe({**fields, "name": name, "cluster": {"workers": world_size}})
        if objective_spec(objective).vocabulary and world_size == 2 and stage in CHUNKED_STAGES:
            recipe = with_logits_chunk(recipe, 5)
        return tiny_job(recipe, folder / "runs", world_size=world_size)

    return Trained(job("alone", 1), job("straight", 2), job("broken", 2))


def _run_all(rank: Rank, jobs: list[Job]) -> None:
    for number, job in enumerate(jobs):
        run_rank(job, rank)
        if number == 0:
            # ZeRO-3 collects garbage at each start, which takes long among all that has been imported by now.
            gc.collect()
            gc.freeze()


def _curve(job: Job, name: str = "train/loss") -> list[float]:
    by_step = {line["step"]: line[name] for line in read_metrics(job.folder.metrics) if name in line}
    return [by_step[step] for step in sorted(by_step)]


def _measured(job: Job) -> dict[str, float]:
    """The newest evaluation."""
    lines = [line for line in read_metrics(job.folder.metrics) if "eval/validation/loss" in line]
    return {name: value for name, value in lines[-1].items() if name.startswith("eval/")}


@pytest.mark.parametrize(("objective", "stage"), CASES)
def test_stages_and_ranks_agree(trained: dict[tuple[str, int], Trained], objective: str, stage: int) -> None:
    reference = _curve(trained[objective, 0].alone)
    assert len(reference) == trained[objective, 0].alone.plan.steps
    assert len(set(reference)) > 1, "nothing is learnt"
    one = trained[objective, stage]
    for job in (one.alone, one.straight) if stage in ALONE else (one.straight,):
        curve = _curve(job)
        worst = max(abs(a - b) / abs(b) for a, b in zip(curve, reference, strict=True))
        assert worst < TOLERANCE, f"relative difference {worst:.2e}\n{curve}\n{reference}"


# What a break could lose, of the objective and of its data, is the same at stage 0: test_resume has it, and runs that
# are told to pause.
@pytest.mark.parametrize(("objective", "stage"), [case for case in CASES if case[1] > 0])
def test_a_break_changes_nothing(trained: dict[tuple[str, int], Trained], objective: str, stage: int) -> None:
    one = trained[objective, stage]
    half = one.broken.plan.steps // 2
    assert [event["resumed_step"] for event in _attempts(one.broken)] == [half]
    assert _curve(one.broken) == _curve(one.straight)[half:]
    assert _measured(one.broken) == _measured(one.straight)
    ours, theirs = (load_file(job.folder.path / "final" / "model.safetensors") for job in (one.broken, one.straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _attempts(job: Job) -> list[dict[str, Any]]:
    events = map(json.loads, (job.folder.path / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["kind"] == "attempt"]


@pytest.mark.parametrize(("objective", "stage"), [case for case in CASES if case[1] > 0])
def test_the_exported_model_measures_the_same(
    trained: dict[tuple[str, int], Trained], objective: str, stage: int
) -> None:
    job = trained[objective, stage].straight
    found = load_trained(job.folder).evaluate()
    own = {name.removeprefix("eval/validation/"): value for name, value in _measured(job).items()}
    assert own.keys() <= found.keys()
    for name, value in own.items():
        assert math.isclose(found[name], value, rel_tol=1e-5, abs_tol=1e-7), name


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if objective_spec(name).predicts])
def test_a_classifier_says_what_it_predicts(trained: dict[tuple[str, int], Trained], objective: str) -> None:
    model = load_trained(trained[objective, 3].straight.folder)
    (said,) = model.sample(["the weight of a model"], max_new_tokens=1, temperature=0.0, seed=0)
    names = [*model.model.config.id2label.values(), *(tag[2:] for tag in model.model.config.id2label.values()), "none"]
    assert any(name and name in said for name in names) or math.isfinite(float(said))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_documents_of_a_step_are_told(trained: dict[tuple[str, int], Trained], objective: str) -> None:
    for job in (trained[objective, 3].straight, trained[objective, 3].broken):
        found = documents_of_step(job.folder, job.plan.steps)
        assert found["problem"] is None
        told = {part["row"] for part in found["documents"] if part["text"].strip()}
        assert told == set(range(job.recipe.train.global_batch))
        assert {part["rank"] for part in found["documents"]} == {0, 1}
