"""A run goes on at another ZeRO stage and on another number of ranks, with the losses of one that never stopped."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shardyard.engine.run import Job
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_jobs
from support.tiny import copy_checkpoint, tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS, HALF = 12, 6
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3}


@dataclass(frozen=True)
class Place:
    """Where a run trains: its ZeRO stage and number of ranks."""

    stage: int
    ranks: int

    def __str__(self) -> str:
        return f"zero{self.stage}x{self.ranks}"


# Precision and optimizer → the places of a run, one after the other. `make stages` adds the others.
JOURNEYS = {
    ("fp32", "adamw"): [(Place(3, 4), Place(1, 2)), (Place(0, 1), Place(3, 2)), (Place(2, 2), Place(0, 1))],
    ("bf16", "adamw"): [(Place(1, 2), Place(3, 4))],
    ("fp32", "lion"): [(Place(3, 2), Place(1, 4))],
}
OTHERS = {
    ("fp32", "adamw"): [
        (Place(3, 2), Place(0, 1)),
        (Place(1, 2), Place(2, 4)),
        (Place(2, 2), Place(3, 4)),
        (Place(1, 4), Place(1, 2)),
        (Place(3, 4), Place(3, 1)),
    ],
    ("bf16", "adamw"): [(Place(3, 2), Place(1, 4)), (Place(0, 1), Place(2, 2)), (Place(1, 2), Place(0, 2))],
    ("fp32", "sgd"): [(Place(1, 2), Place(3, 2)), (Place(3, 2), Place(0, 2))],
}
if os.environ.get("SHARDYARD_ALL_STAGES"):
    JOURNEYS = {how: [*JOURNEYS.get(how, []), *OTHERS.get(how, [])] for how in {**JOURNEYS, **OTHERS}}
CASES = [(*how, *places) for how, journeys in JOURNEYS.items() for places in journeys]


def _job(corpus: Path, runs: Path, precision: str, optimizer: str, place: Place) -> Job:
    recipe = tiny_recipe(
        corpus,
        model={"dropout": 0.0},
        train={"precision": precision, "steps": STEPS, "micro_batch": 1, "global_batch": 4},
        optimizer={"name": optimizer, "lr": 1e-3, "betas": [0.9, 0.95]} if optimizer != "sgd" else SGD,
        zero={"stage": place.stage},
        checkpoint={"every": STEPS},
        cluster={"workers": place.ranks},
    )
    return tiny_job(recipe, runs, world_size=place.ranks)


SGD: dict[str, Any] = {"name": "sgd", "lr": 1e-1, "momentum": 0.9}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], tuple[Job, Job]]:
    """Case → the run that never stopped, and the one that went on elsewhere."""
    corpus, runs = write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("runs")
    straight = {how: _job(corpus, runs, *how, Place(0, 1)) for how in JOURNEYS}
    begun = {case: _job(corpus, runs, *case[:3]) for case in CASES}
    run_jobs([*straight.values(), *(replace(job, until=HALF) for job in begun.values())])
    ended = {}
    for case, first in begun.items():
        ended[case] = _job(corpus, runs, *case[:2], case[3])
        copy_checkpoint(first, ended[case], HALF)
    run_jobs(list(ended.values()))
    return {case: (straight[case[:2]], ended[case]) for case in CASES}


def _curve(job: Job) -> list[float]:
    return [line["train/loss"] for line in read_metrics(job.folder.metrics) if line["step"] > HALF]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_it_goes_on_as_if_it_had_never_moved(
    trained: dict[tuple[Any, ...], tuple[Job, Job]], case: tuple[Any, ...]
) -> None:
    straight, moved = trained[case]
    events = [json.loads(line) for line in moved.folder.events.read_text().splitlines()]
    assert [event["resumed_step"] for event in events if event["kind"] == "attempt"] == [HALF]
    assert len(_curve(moved)) == STEPS - HALF
    assert _curve(moved) == pytest.approx(_curve(straight), rel=TOLERANCE[case[0]])
    ours, theirs = (load_file(job.folder.path / "final" / "model.safetensors") for job in (moved, straight))
    for name, tensor in ours.items() if case[0] == "fp32" else ():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-4)
