"""A run goes on with other axes, at another ZeRO stage and on another number of ranks, as one that never stopped."""

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

STEPS, HALF, TOLERANCE = 8, 4, 1e-4
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    # Tied embeddings are saved under two names.
    "llama": {**_SIZES, "tie_word_embeddings": True},
    "mixtral": {**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
}


@dataclass(frozen=True)
class Place:
    """Where a run trains: its ZeRO stage, its number of ranks, and the sizes of its axes."""

    stage: int
    ranks: int
    tensor: int = 1
    sequence: int = 1
    expert: int = 1

    def __str__(self) -> str:
        axes = {"tensor": self.tensor, "sequence": self.sequence, "expert": self.expert}
        return "-".join([f"zero{self.stage}x{self.ranks}", *(f"{name}{n}" for name, n in axes.items() if n > 1)])


ONE = Place(0, 1)
# Family → the places of a run, one after the other. `make stages` adds the others.
JOURNEYS = {
    "llama": [
        (Place(1, 4, tensor=2), Place(3, 1)),
        (Place(3, 4, tensor=2, sequence=2), Place(1, 4, tensor=4)),
        (ONE, Place(2, 4, tensor=2, sequence=2)),
    ],
    "mixtral": [(Place(2, 4, expert=2), Place(3, 4, expert=4)), (ONE, Place(1, 2, expert=2))],
    "qwen2_moe": [(Place(3, 4, expert=2), Place(1, 2, tensor=2))],
}
OTHERS = {
    "llama": [
        (Place(3, 1), Place(1, 4, tensor=2)),
        (Place(2, 2, sequence=2), ONE),
        (Place(3, 4, sequence=2), Place(3, 2, tensor=2)),
        (Place(0, 2, tensor=2), Place(0, 4, tensor=4)),
        (Place(1, 4, tensor=4), Place(2, 2, sequence=2)),
    ],
    "mixtral": [
        (Place(1, 2, expert=2), ONE),
        (Place(3, 4, expert=4), Place(3, 1)),
        (Place(3, 2, expert=2), Place(2, 4, expert=4)),
        (Place(1, 4, expert=4), Place(1, 4, expert=2)),
        (Place(3, 4, expert=4, sequence=2), Place(1, 4, expert=2)),
        (Place(1, 2, tensor=2), Place(3, 4, expert=4, sequence=2)),
    ],
    "qwen2_moe": [(Place(3, 1), Place(3, 4, expert=4)), (Place(2, 4, expert=4), Place(0, 2))],
}
if os.environ.get("SHARDYARD_ALL_STAGES"):
    JOURNEYS = {family: [*journeys, *OTHERS[family]] for family, journeys in JOURNEYS.items()}
CASES = [(family, *places) for family, journeys in JOURNEYS.items() for places in journeys]


def job_of(corpus: Path, runs: Path, family: str, place: Place) -> Job:
    recipe = tiny_recipe(
        corpus,
        model={"family": family, "config": FAMILIES[family], "dropout": 0.0},
        train={"steps": STEPS, "micro_batch": 2, "global_batch": 8, "gradient_clipping": 0.5},
        optimizer={"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95]},
        schedule={"warmup": 2},
        zero={"stage": place.stage},
        checkpoint={"every": HALF, "keep": 5},
        evaluate={"every": STEPS, "rows": 4},
        parallel={"tensor": place.tensor, "sequence": place.sequence, "expert": place.expert},
        cluster={"workers": place.ranks},
    )
    return tiny_job(recipe, runs, world_size=place.ranks)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], tuple[Job, Job]]:
    """Case → the run on one rank that never stopped, and the one that went on elsewhere."""
    corpus, runs = write_corpus(tmp_path_factory.mktemp("corpus")), tmp_path_factory.mktemp("runs")
    straight = {family: job_of(corpus, runs, family, ONE) for family in JOURNEYS}
    begun = {case: job_of(corpus, runs, *case[:2]) for case in CASES if case[1] != ONE}
    run_jobs([*straight.values(), *(replace(job, until=HALF) for job in begun.values())])
    ended = {}
    for case in CASES:
        ended[case] = job_of(corpus, runs, case[0], case[2])
        copy_checkpoint(begun[case] if case in begun else straight[case[0]], ended[case], HALF)
    run_jobs(list(ended.values()))
    return {case: (straight[case[0]], ended[case]) for case in CASES}


def after(job: Job) -> list[dict[str, float]]:
    return [line for line in read_metrics(job.folder.metrics) if line["step"] > HALF]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_it_goes_on_as_if_it_had_never_moved(
    trained: dict[tuple[Any, ...], tuple[Job, Job]], case: tuple[Any, ...]
) -> None:
    """Losses and gradient norms, the documents of all steps, and the trained weights, which Adam's moments move."""
    straight, moved = trained[case]
    events = [json.loads(line) for line in moved.folder.events.read_text().splitlines()]
    assert [event["resumed_step"] for event in events if event["kind"] == "attempt"] == [HALF]
    ours, theirs = after(moved), after(straight)
    assert len(ours) == len(theirs) == STEPS - HALF
    for metric in ("train/loss", "train/grad_norm"):
        assert [line[metric] for line in ours] == pytest.approx([line[metric] for line in theirs], rel=TOLERANCE)
    read = [job.folder.checkpoints / f"step-{STEPS:08}" / "data.json" for job in (moved, straight)]
    assert json.loads(read[0].read_text()) == json.loads(read[1].read_text())
    weights = [load_file(job.folder.path / "final" / "model.safetensors") for job in (moved, straight)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)
