"""Tensor and sequence parallelism on four ranks against one: losses, gradient norms, evaluations, exported weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shardyard.engine.inference.load import export_checkpoint, load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS, TOLERANCE = 20, 1e-4
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Name → axes and ZeRO stage, and further fields; documents of the packed rows are kept apart in all but one.
CASES: dict[str, dict[str, Any]] = {
    "tensor 2, stage 1": {"parallel": {"tensor": 2}, "zero": {"stage": 1}},
    "tensor 2, stage 3": {"parallel": {"tensor": 2}, "zero": {"stage": 3}},
    "sequence 2, stage 3": {"parallel": {"sequence": 2}, "zero": {"stage": 3}, "model": {"mlp_chunk": 8}},
    "sequence 4, stage 0": {"parallel": {"sequence": 4}, "zero": {"stage": 0}, "model": {"logits_chunk": 8}},
    "both, stage 2": {
        "parallel": {"tensor": 2, "sequence": 2},
        "zero": {"stage": 2},
        "model": {"activation_checkpointing": True, "mlp_chunk": 12},
    },
    "a second copy of the weights on two ranks": {
        "zero": {"stage": 3, "hpz_partition_size": 2, "persistence_threshold": 0}
    },
    "both, stage 0": {"parallel": {"tensor": 2, "sequence": 2}, "zero": {"stage": 0}},
}
# Rows of 4,096 tokens, each shared by four ranks.
LONG: dict[str, Any] = {
    "data": {"sequence_length": 4096, "isolate_documents": False},
    "train": {"steps": 2, "global_batch": 2, "gradient_clipping": 1.0},
    "schedule": {"warmup": 1},
    "evaluate": {"every": 2, "rows": 1},
    "checkpoint": {"every": 2},
}
# Experts of a layer on four ranks, two of which share each row.
EXPERTS: dict[str, Any] = {
    "family": "mixtral",
    "train": {"steps": 8, "gradient_clipping": 0.5},
    "optimizer": {"name": "sgd", "lr": 0.5, "weight_decay": 0.0},
    "schedule": {"warmup": 1},
    "model": {"config": {**CONFIG, "num_local_experts": 4, "num_experts_per_tok": 2}},
}
RESUMED = ("tensor 2, stage 1", "both, stage 2")


def job_of(corpus: Path, runs: Path, ranks: int, until: int | None = None, **case: Any) -> Job:
    model = {"config": CONFIG, "dropout": 0.0, **case.pop("model", {})}
    sections: dict[str, Any] = {
        "train": {"gradient_clipping": 1.0, "steps": STEPS},
        "evaluate": {"every": 10, "rows": 5},
        "sample": {"prompts": ["the model"], "max_new_tokens": 4},
        "checkpoint": {"every": 10, "keep": 5},
        "cluster": {"workers": ranks},
        **case,
    }
    recipe = tiny_recipe(corpus, family=sections.pop("family", "llama"), model=model, **sections)
    return tiny_job(recipe, runs, world_size=ranks, until=until)


def run_all(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A run on one rank, one of each case, and two that paused at step 10 and went on in new processes."""
    folder = tmp_path_factory.mktemp("axes")
    corpus = write_corpus(folder)
    longer = {"config": {**CONFIG, "max_position_embeddings": 4096}}
    found = {"one": job_of(corpus, folder, 1), "long, one": job_of(corpus, folder, 1, model=longer, **LONG)}
    found["experts, one"] = job_of(corpus, folder, 1, **EXPERTS)
    assert run_ranks(1, run_all, list(found.values())) == [["finished"] * 3]
    chunked = {**longer, "logits_chunk": 512, "mlp_chunk": 512}
    found["long"] = job_of(corpus, folder, 4, parallel={"sequence": 4}, model=chunked, zero={"stage": 3}, **LONG)
    axes = {"parallel": {"sequence": 2, "expert": 4}, "zero": {"stage": 2}}
    found["experts"] = job_of(corpus, folder, 4, **axes, **EXPERTS)
    found |= {name: job_of(corpus, folder, 4, **case) for name, case in CASES.items()}
    paused = {f"{name}, resumed": job_of(corpus, folder, 4, 10, **CASES[name]) for name in RESUMED}
    first = run_ranks(4, run_all, [found["long"], found["experts"], *(found[name] for name in CASES), *paused.values()])
    assert first[0] == ["finished"] * (2 + len(CASES)) + ["paused"] * len(paused)
    found |= {name: dataclasses.replace(job, until=None) for name, job in paused.items()}
    assert run_ranks(4, run_all, [found[name] for name in paused])[3] == ["finished"] * len(paused)
    return found


def lines(job: Job) -> dict[int, dict[str, float]]:
    merged: dict[int, dict[str, float]] = {}
    for line in map(json.loads, job.folder.metrics.read_text().splitlines()):
        merged.setdefault(line["step"], {}).update(line)
    return merged


def weights(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.folder.path / "final" / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_every_combination_follows_the_curve_of_one_rank(jobs: dict[str, Job], name: str) -> None:
    """20 steps in fp32, clipped; held-out rows and their standard errors as well."""
    one, many = lines(jobs["one"]), lines(jobs[name])
    assert one.keys() == many.keys()
    assert len(one) == STEPS
    assert one[STEPS]["train/loss"] < one[1]["train/loss"] - 0.5
    assert any(line["train/grad_norm"] > 1 for line in one.values()), "nothing is clipped"
    compared = ("train/loss", "train/grad_norm", "eval/validation/loss", "eval/validation/perplexity")
    for step, line in one.items():
        for metric in (metric for metric in compared if metric in line):
            assert many[step][metric] == pytest.approx(line[metric], rel=TOLERANCE), (step, metric)
        assert many[step]["data/tokens"] == line["data/tokens"] if "data/tokens" in line else True
    assert sum("eval/validation/loss" in line for line in one.values()) == 2


@pytest.mark.parametrize("name", ["long", "experts"])
def test_long_rows_and_experts_on_four_ranks_give_the_losses_of_one(jobs: dict[str, Job], name: str) -> None:
    """Rows of 4,096 tokens; experts beside shared rows, whose layers DeepSpeed replaces."""
    one, many = lines(jobs[f"{name}, one"]), lines(jobs[name])
    for step, line in one.items():
        for metric in ("train/loss", "train/grad_norm"):
            assert many[step][metric] == pytest.approx(line[metric], rel=TOLERANCE), (step, metric)
    last = max(one)
    assert many[last]["eval/validation/loss"] == pytest.approx(one[last]["eval/validation/loss"], rel=TOLERANCE)


@pytest.mark.parametrize("name", [*CASES, "experts"])
def test_the_exported_weights_are_those_of_one_rank(jobs: dict[str, Job], name: str) -> None:
    """By the names of transformers, whole; the samples of the last step are the same text."""
    reference = jobs["experts, one" if name == "experts" else "one"]
    one, many = weights(reference), weights(jobs[name])
    assert one.keys() == many.keys()
    for weight, value in one.items():
        torch.testing.assert_close(
            many[weight], value, rtol=1e-4, atol=1e-5, msg=lambda text, at=weight: f"{at} {text}"
        )
    samples = [(job.folder.path / "samples.jsonl").read_text().splitlines() for job in (reference, jobs[name])]
    assert [json.loads(line)["text"] for line in samples[1]] == [json.loads(line)["text"] for line in samples[0]]


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_bitwise_equal(jobs: dict[str, Job], name: str) -> None:
    whole, resumed = weights(jobs[name]), weights(jobs[f"{name}, resumed"])
    assert all(torch.equal(whole[weight], resumed[weight]) for weight in whole)
    manifest = json.loads((jobs[name].folder.checkpoints / "step-00000010" / "manifest.json").read_text())
    axes = CASES[name]["parallel"]
    assert manifest["tensor_parallel"] == axes.get("tensor", 1)
    assert manifest["sequence_parallel"] == axes.get("sequence", 1)


@pytest.mark.parametrize("name", [name for name in CASES if "parallel" in CASES[name]] + ["experts"])
def test_a_checkpoint_exports_with_whole_layers(jobs: dict[str, Job], name: str, tmp_path: Path) -> None:
    """At every stage: the loss of the run at that step; of the last step, exactly what the run left in final/."""
    job = jobs[name]
    last = max(lines(job))
    step = min(10, last)
    measured = load_trained(job.folder, step=step).evaluate()["loss"]
    assert measured == pytest.approx(lines(job)[step]["eval/validation/loss"], rel=1e-5)
    exported = load_file(export_checkpoint(job.folder, last, tmp_path / "model") / "model.safetensors")
    final = weights(job)
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[weight], final[weight]) for weight in final)
