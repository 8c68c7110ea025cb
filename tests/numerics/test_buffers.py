"""What a model computes from its configuration is as exact in training as in the exported model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shardyard.engine.assemble import assemble
from shardyard.engine.inference.load import load_trained
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow


def train_and_show(rank: Rank, jobs: list[Job]) -> list[torch.Tensor]:
    """Train each job; rotary frequencies as its engine has them."""
    shown = []
    for job in jobs:
        session = assemble(job.recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
        shown.append(session.engine.module.model.rotary_emb.inv_freq.clone())
        session.close()
        run_rank(job, rank)
    return shown


def test_rotary_frequencies_are_not_rounded_to_half_precision(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    recipes = [
        tiny_recipe(corpus, family="llama", train={"precision": "bf16"}, zero={"stage": stage}) for stage in (0, 2, 3)
    ]
    jobs = [tiny_job(recipe, tmp_path) for recipe in recipes]
    for job, frequencies in zip(jobs, run_ranks(1, train_and_show, jobs)[0], strict=True):
        assert frequencies.dtype == torch.float32
        exported = AutoModelForCausalLM.from_pretrained(job.folder.path / "final", dtype="auto")
        assert torch.equal(frequencies, exported.model.rotary_emb.inv_freq)
        own = read_metrics(job.folder.metrics)[-1]["eval/validation/loss"]
        assert load_trained(job.folder).evaluate()["loss"] == pytest.approx(own, rel=1e-5)
