"""Stages in training: one sequence of losses at every ZeRO stage, number of ranks and micro-batch, and on resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS = 12
STAGES = [
    {"at": 4, "sequence_length": 64, "global_batch": 4, "weights": [1.0, 3.0]},
    {"at": 8, "name": "anneal", "global_batch": 16, "weights": [0.0, 1.0]},
]
# ZeRO stage, ranks, micro-batch.
CASES = [(0, 1, 1), (0, 1, 2), (1, 2, 1), (2, 2, 2), (3, 2, 1)]


def jobs_in_order(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


def recipe_of(corpora: list[Path], zero: int, ranks: int, micro: int, **sections: Any) -> Any:
    train = [{"path": str(corpora[0]), "holdout": 0.1}, {"path": str(corpora[1]), **sections.pop("second", {})}]
    return tiny_recipe(
        corpora[0],
        data={"train": train, "stages": STAGES, **sections.pop("data", {})},
        train={"steps": STEPS, "global_batch": 8, "micro_batch": micro, **sections.pop("train", {})},
        zero={"stage": zero},
        checkpoint={"every": 3},
        evaluate={"every": 6, "rows": 4},
        cluster={"workers": ranks},
        **sections,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[object, RunFolder]:
    """The cases, one that pauses within its second stage, and one whose sources end early."""
    folder = tmp_path_factory.mktemp("runs")
    corpora = [write_corpus(folder, 300, seed) for seed in (0, 1)]
    first: dict[int, list[Job]] = {1: [], 2: []}
    found: dict[object, RunFolder] = {}
    for case in CASES:
        job = tiny_job(recipe_of(corpora, *case), folder / "runs", world_size=case[1])
        first[case[1]].append(job)
        found[case] = job.folder
    paused = tiny_job(recipe_of(corpora, 1, 2, 1), folder / "runs", world_size=2, until=6)
    first[2].append(paused)
    found["paused"] = paused.folder
    ending = tiny_job(
        recipe_of(
            [write_corpus(folder, 40, seed) for seed in (2, 3)],
            1,
            2,
            2,
            data={
                "stages": [],
                "train": [
                    {"path": str(folder / "corpus-40-2.jsonl"), "holdout": 0.1, "epochs": 1},
                    {"path": str(folder / "corpus-40-3.jsonl"), "tokens": 640},
                ],
            },
            train={"steps": 60},
        ),
        folder / "runs",
        world_size=2,
    )
    first[2].append(ending)
    found["ending"] = ending.folder
    for ranks, jobs in first.items():
        assert set(run_ranks(ranks, jobs_in_order, jobs)[0]) <= {"finished", "paused"}
    rest = replace(paused, until=None)
    # The finished run is resumed too: its data has ended, so nothing is trained.
    assert run_ranks(2, jobs_in_order, [rest, ending])[0] == ["finished", "finished"]
    return found


def losses(folder: RunFolder) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in read_metrics(folder.metrics)}


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_sharding_and_accumulation_change_no_loss(runs: dict[object, RunFolder], case: tuple[int, int, int]) -> None:
    expected = losses(runs[CASES[0]])
    assert len(expected) == STEPS
    assert losses(runs[case]) == pytest.approx(expected, rel=2e-5)
    norms = [
        {line["step"]: line["train/grad_norm"] for line in read_metrics(runs[one].metrics)} for one in (CASES[0], case)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_run_that_pauses_within_a_stage_goes_on_bit_for_bit(runs: dict[object, RunFolder]) -> None:
    assert losses(runs["paused"]) == losses(runs[1, 2, 1])


def test_tokens_sources_and_stages_are_told(runs: dict[object, RunFolder]) -> None:
    folder = runs[1, 2, 1]
    lines = {line["step"]: line for line in read_metrics(folder.metrics)}
    assert [lines[step]["train/tokens"] for step in (4, 5, 8, 12)] == [1024, 1280, 2048, 2048 + 4 * 16 * 64]
    names = ["data/tokens/corpus-300-0.jsonl", "data/tokens/corpus-300-1.jsonl"]
    for line in lines.values():
        assert sum(line[name] for name in names) == line["train/tokens"]
    assert lines[12][names[0]] == lines[8][names[0]]
    assert lines[4][names[0]] == 512
    stages = [
        line for line in folder.events.read_text().splitlines() if '"kind": "stage"' in line.replace('":"', '": "')
    ]
    assert len(stages) == 2
    assert "anneal" in stages[1]


def test_a_run_whose_sources_end_is_evaluated_and_exported(runs: dict[object, RunFolder]) -> None:
    folder = runs["ending"]
    lines = read_metrics(folder.metrics)
    last = lines[-1]
    assert 1 < last["step"] < 60
    assert "eval/validation/loss" in last
    assert last["data/tokens/corpus-40-3.jsonl"] == 640
    assert (folder.path / "final" / "model.safetensors").exists()
    text = folder.events.read_text()
    assert text.count('"exhausted"') == 1, text
