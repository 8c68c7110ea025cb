"""Every optimizer, precision and memory option that a recipe can choose, trained for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from shardyard.engine import run
from shardyard.engine.inference.load import load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import HardwareError
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import CONFIGS, tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

SGD = {"name": "sgd", "lr": 0.3, "betas": [0.9, 0.95]}
MUON = {"name": "muon", "lr": 0.02, "aux_lr": 3e-3}
ONE_LAYER = {"config": {**CONFIGS["gpt2"], "n_layer": 1}}
# What is compared with what: the second recipe of each pair must give the losses of the first.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "adam": ({"optimizer": {"name": "adam"}}, {"optimizer": {"name": "adam"}, "zero": {"stage": 2}}, 1e-4),
    "sgd-nesterov": (
        {"optimizer": SGD | {"nesterov": True}},
        {"optimizer": SGD | {"nesterov": True}, "zero": {"stage": 3}},
        1e-4,
    ),
    "adagrad": (
        {"optimizer": {"name": "adagrad", "lr": 0.02}},
        {"optimizer": {"name": "adagrad", "lr": 0.02}, "zero": {"stage": 2}},
        1e-4,
    ),
    "rmsprop": (
        {"optimizer": {"name": "rmsprop", "lr": 1e-3}},
        {"optimizer": {"name": "rmsprop", "lr": 1e-3}, "zero": {"stage": 3}},
        1e-4,
    ),
    "lion": (
        {"optimizer": {"name": "lion", "lr": 1e-3}},
        {"optimizer": {"name": "lion", "lr": 1e-3}, "zero": {"stage": 2}},
        1e-4,
    ),
    "muon": (
        {"optimizer": MUON, "train": {"gradient_clipping": 0.0}, "zero": {"stage": 0}},
        {"optimizer": MUON, "train": {"gradient_clipping": 0.0}, "zero": {"stage": 3}},
        1e-3,
    ),
    "offload-optimizer": ({"zero": {"stage": 2}}, {"zero": {"stage": 2, "offload_optimizer": True}}, 1e-4),
    "offload-parameters": (
        {"zero": {"stage": 3}},
        {"zero": {"stage": 3, "offload_optimizer": True, "offload_parameters": True}},
        1e-4,
    ),
    "activation-checkpointing": ({}, {"model": {"activation_checkpointing": True}, "zero": {"stage": 3}}, 1e-4),
    "selective-checkpointing": (
        {},
        {"model": {"activation_checkpointing": "selective", "offload_activations": True}, "zero": {"stage": 3}},
        1e-4,
    ),
    "bf16-stage-0": (
        {"train": {"precision": "bf16"}, "zero": {"stage": 2}},
        {"train": {"precision": "bf16"}, "zero": {"stage": 0}},
        5e-3,
    ),
    "bf16-is-near-fp32": ({}, {"train": {"precision": "bf16"}, "zero": {"stage": 1}}, 1e-2),
    # One layer, because compiling takes half a minute for each.
    "compile": ({"model": ONE_LAYER}, {"model": {**ONE_LAYER, "compile": True}, "zero": {"stage": 1}}, 1e-4),
    "compile-in-shards": (
        {"model": ONE_LAYER},
        {
            "model": {**ONE_LAYER, "compile": True, "activation_checkpointing": "selective", "logits_chunk": 16},
            "zero": {"stage": 3},
        },
        1e-4,
    ),
}


def run_all(rank: Rank, jobs: list[Job]) -> list[list[float]]:
    """Losses of each job."""
    found = []
    for job in jobs:
        # Muon compiles three functions for each shape: once is enough, and at stage 3 it gives the same without.
        eager = job.recipe.optimizer.name == "muon" and job.recipe.zero.stage == 3
        torch.compiler.set_stance("force_eager" if eager else "default")
        assert run_rank(job, rank) == "finished"
        found.append([line["train/loss"] for line in read_metrics(job.folder.metrics)])
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def measured(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[float], list[float]]]:
    runs = tmp_path_factory.mktemp("runs")
    jobs = []
    for first, second, _ in PAIRS.values():
        for sections in (first, second):
            merged = {"evaluate": {"every": 20, "rows": 2}, "checkpoint": {"every": 20}, **sections}
            jobs.append(tiny_job(tiny_recipe(corpus, **merged), runs))
    losses = iter(run_ranks(1, run_all, jobs)[0])
    return {name: (next(losses), next(losses)) for name in PAIRS}


@pytest.mark.parametrize("name", PAIRS)
def test_an_option_trains_as_its_counterpart(measured: dict[str, tuple[list[float], list[float]]], name: str) -> None:
    reference, ours = measured[name]
    assert ours[-1] < ours[0] - 0.5, f"it does not learn: {ours}"
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))
    assert worst < PAIRS[name][2], f"relative difference {worst:.2e}\n{ours}\n{reference}"


def fp16_runs(rank: Rank, jobs: list[Job]) -> list[list[dict[str, Any]]]:
    """Metrics of fp16 runs. A CPU without units for fp16 computes it all the same, only slowly: here it may."""
    get_accelerator().is_fp16_supported = lambda: True
    run.check_precision = lambda precision, device: None
    return [read_metrics(job.folder.metrics) for job in jobs if run_rank(job, rank) == "finished"]


def test_fp16_lowers_a_loss_scale_that_is_too_large_and_then_learns(corpus: Path, tmp_path: Path) -> None:
    recipes = [
        tiny_recipe(corpus, train={"precision": "fp16", "initial_loss_scale": 24}, zero={"stage": stage})
        for stage in range(4)
    ]
    stages = run_ranks(1, fp16_runs, [tiny_job(recipe, tmp_path) for recipe in recipes])[0]
    assert len(stages) == 4
    for lines in stages:
        scales = [line["train/loss_scale"] for line in lines]
        assert scales[-1] <= 2**16
        assert lines[0]["train/skipped"] == 1.0
        assert "train/skipped" not in lines[-1]
        assert 0.1 < lines[-1]["train/grad_norm"] < 10, "a norm that still holds the loss scale"
        assert lines[-1]["train/loss"] < lines[0]["train/loss"] - 0.5
    assert stages[1][-1]["train/loss"] == pytest.approx(stages[3][-1]["train/loss"], rel=1e-3)


def refusal(rank: Rank, job: Job) -> str:
    torch.ops.mkldnn._is_mkldnn_fp16_supported = lambda: False
    with pytest.raises(HardwareError) as caught:
        run_rank(job, rank)
    return str(caught.value)


def test_fp16_is_refused_where_the_cpu_lacks_it(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, train={"precision": "fp16"}, zero={"stage": 1})
    assert "use train.precision bf16 or fp32" in run_ranks(1, refusal, tiny_job(recipe, tmp_path))[0]


def test_early_stopping_ends_a_run_and_survives_resuming(corpus: Path, tmp_path: Path) -> None:
    """A minimum change that nothing reaches: the second evaluation without improvement is the last."""
    recipe = tiny_recipe(
        corpus,
        evaluate={"every": 5, "rows": 4, "early_stopping": {"patience": 2, "min_delta": 10.0}},
        checkpoint={"every": 5},
    )
    job = tiny_job(recipe, tmp_path)
    assert run_ranks(1, run_all, [job])[0]
    kinds = [json.loads(line)["kind"] for line in job.folder.events.read_text().splitlines()]
    assert kinds.count("evaluation") == 3
    assert "early_stop" in kinds
    assert read_metrics(job.folder.metrics)[-1]["step"] == 15


def test_pretrained_weights_are_where_training_starts(corpus: Path, tmp_path: Path) -> None:
    """A run from another run's result begins with the loss that the other ended with, at stage 0 and at stage 3."""
    first = tiny_job(tiny_recipe(corpus), tmp_path / "first")
    run_ranks(1, run_all, [first])
    end = load_trained(first.folder).evaluate()["loss"]
    jobs = []
    for stage in (0, 3):
        recipe = tiny_recipe(
            corpus,
            model={"pretrained": str(first.folder.path / "final"), "config": {}, "dropout": 0.0},
            optimizer={"name": "adamw", "lr": 1e-9},
            train={"steps": 1},
            schedule={"name": "constant", "warmup": 0},
            zero={"stage": stage},
        )
        jobs.append(tiny_job(recipe, tmp_path / "second"))
    run_ranks(1, run_all, jobs)
    for job in jobs:
        measured = read_metrics(job.folder.metrics)[-1]["eval/validation/loss"]
        assert measured == pytest.approx(end, rel=1e-4)


def test_uneven_targets_weigh_alike(corpus: Path, tmp_path: Path) -> None:
    """With a tokenizer that marks both ends of a document, rows differ in their number of targets."""
    from shardyard.data.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.save_pretrained(tmp_path / "both")
    base = {"tokenizer": str(tmp_path / "both"), "zero": {"stage": 2}}
    recipes = [tiny_recipe(corpus, train={"micro_batch": rows}, **base) for rows in (8, 1)]
    whole, cut = run_ranks(1, run_all, [tiny_job(recipe, tmp_path / "runs") for recipe in recipes])[0]
    assert whole == pytest.approx(cut, rel=1e-4)
    two = tiny_recipe(corpus, train={"micro_batch": 2}, cluster={"workers": 2}, **base)
    assert run_ranks(2, run_all, [tiny_job(two, tmp_path / "runs", world_size=2)])[0][0] == pytest.approx(
        whole, rel=1e-4
    )
