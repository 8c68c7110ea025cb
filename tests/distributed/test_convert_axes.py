"""Checkpoints of runs whose layers, rows or experts lie on several ranks, in other layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shardyard.cli.main import app
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.convert.whole import same_bits
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import UsageError
from shardyard.tracking.run.folder import RunFolder
from support.ranks import run_ranks
from support.tiny import LLAMA_SIZES, tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow
# Axis → ZeRO stage, family and its configuration. Tied embeddings are saved under two names.
SPLIT: dict[str, tuple[int, str, dict[str, Any]]] = {
    "tensor": (1, "llama", {**LLAMA_SIZES, "tie_word_embeddings": True}),
    "sequence": (3, "llama", LLAMA_SIZES),
    "expert": (2, "mixtral", {**LLAMA_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def train(rank: Rank, jobs: list[Job]) -> None:
    for job in jobs:
        run_rank(job, rank)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """Two steps of two ranks, by the axis along which both lie."""
    folder = tmp_path_factory.mktemp("convert")
    corpus, jobs = write_corpus(folder), []
    for axis, (stage, family, config) in SPLIT.items():
        recipe = tiny_recipe(
            corpus,
            model={"family": family, "config": config, "dropout": 0.0},
            train={"steps": 2, "micro_batch": 2, "global_batch": 4},
            schedule={"warmup": 1},
            zero={"stage": stage},
            evaluate={"every": 2, "rows": 4},
            parallel={axis: 2},
            cluster={"workers": 2},
        )
        jobs.append(tiny_job(recipe, folder / "runs", world_size=2))
    run_ranks(2, train, jobs)
    return {axis: job.folder for axis, job in zip(SPLIT, jobs, strict=True)}


def call(run: RunFolder, folder: Path, *words: str) -> None:
    arguments = ["checkpoint", "convert", str(run.path), str(folder), *words]
    typer.main.get_command(app).main(args=arguments, standalone_mode=False)


@pytest.mark.parametrize("axis", SPLIT)
def test_the_parts_of_ranks_are_joined(runs: dict[str, RunFolder], tmp_path: Path, axis: str) -> None:
    """Weights are those of the exported model, which the ranks gathered; each has its moments."""
    call(runs[axis], tmp_path / "out", "--to", "states")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    # In files the experts have names of their own, and transformers stacks them.
    exported = AutoModelForCausalLM.from_pretrained(runs[axis].final, dtype=torch.float32).state_dict()
    assert weights.keys() - {"lm_head.weight"} == exported.keys() - {"lm_head.weight"}
    assert all(same_bits(tensor, exported[name]) for name, tensor in weights.items())
    moments = load_file(tmp_path / "out" / "exp_avg.safetensors")
    assert {name: moments[name].shape for name in moments} == {name: tensor.shape for name, tensor in weights.items()}


def test_they_become_whole_on_one_rank(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    """Every value is compared after the other layout was resumed and saved by DeepSpeed."""
    call(runs["expert"], tmp_path / "one", "--to", "ranks", "--workers", "1", "--axis", "expert=1", "--stage", "3")
    (written,) = (tmp_path / "one").iterdir()
    manifest = files.read_manifest(written)
    assert (manifest["world_size"], manifest["zero_stage"], manifest.get("expert_parallel", 1)) == (1, 3, 1)


def test_deepspeeds_layout_has_whole_layers(runs: dict[str, RunFolder], tmp_path: Path) -> None:
    call(runs["tensor"], tmp_path / "states", "--to", "states")
    call(runs["tensor"], tmp_path / "universal", "--to", "universal")
    moments = load_file(tmp_path / "states" / "exp_avg.safetensors")
    for name, tensor in moments.items():
        found = torch.load(tmp_path / "universal" / "global_step2" / "zero" / name / "exp_avg.pt", weights_only=True)
        found = found["param"] if isinstance(found, dict) else found
        assert same_bits(found.reshape(-1), tensor.reshape(-1)), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["states", "universal"]


@pytest.mark.parametrize("axis", ["pipeline=2", "tensor", "tensor=0"])
def test_an_axis_that_is_none_is_refused(runs: dict[str, RunFolder], tmp_path: Path, axis: str) -> None:
    with pytest.raises(UsageError, match="give one of tensor, sequence, expert and its size"):
        call(runs["tensor"], tmp_path / "out", "--to", "ranks", "--axis", axis)
