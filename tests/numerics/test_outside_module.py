"""The module of docs/extending.md trains like a family: at every ZeRO stage, in bf16, resumed, exported and sampled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from shardyard.engine.inference.lm_eval import measure_run
from shardyard.engine.inference.load import export_checkpoint, load_trained
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import UsageError
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import read_metrics
from support.docs.pages import REPOSITORY, blocks_of
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

Make = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A recipe with the module of the page; sections are merged over it."""
    page = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
    (source,) = (block.text for block in blocks_of("docs/extending.md", page) if block.mark == "recurrent.py")
    (tmp_path / "recurrent.py").write_text(source, encoding="utf-8")
    corpus = write_corpus(tmp_path)

    def recipe(**sections: Any) -> Recipe:
        module = {"family": "module", "module": f"{tmp_path}/recurrent.py:RecurrentLM", "config": {"width": 32}}
        model = {**module, "dropout": None, **sections.pop("model", {})}
        data = {"isolate_documents": False}
        train = {"steps": 4, **sections.pop("train", {})}
        return tiny_recipe(corpus, model=model, data=data, train=train, schedule={"warmup": 1}, **sections)

    return recipe


def carry_out(rank: Rank, job: Job) -> str:
    return run_rank(job, rank)


def losses(recipe: Recipe, runs: Path, world_size: int = 1) -> tuple[list[float], Job]:
    job = tiny_job(recipe, runs, world_size=world_size)
    assert set(run_ranks(world_size, carry_out, job)) == {"finished"}
    return [line["train/loss"] for line in read_metrics(job.folder.metrics)], job


def test_losses_are_those_of_one_rank_at_every_stage(make: Make, tmp_path: Path) -> None:
    expected, _ = losses(make(), tmp_path / "runs")
    assert expected[0] == pytest.approx(5.55, abs=0.1), "the entropy of 257 tokens: the constructor's weights are used"
    assert expected[-1] < expected[0]
    frozen = {"freeze": ["blocks.0.*"]}
    for stage, world_size, model in ((1, 1, {}), (2, 2, {}), (3, 2, {"activation_checkpointing": True})):
        found, job = losses(make(zero={"stage": stage}, model=model), tmp_path / "runs", world_size)
        assert found == pytest.approx(expected, rel=1e-5), f"stage {stage}"
        stored = load_file(job.folder.path / "final" / "model.safetensors")
        assert "embed.weight" in stored
        assert "head.weight" not in stored, "it is tied to the embedding"
    _, job = losses(make(model=frozen, train={"steps": 2}), tmp_path / "runs")
    stored = load_file(job.folder.path / "final" / "model.safetensors")
    torch.manual_seed(job.recipe.train.seed)
    assert float(stored["blocks.0.norm.weight"].sum()) == 32, "as it began"
    assert float(stored["blocks.1.norm.weight"].sum()) != 32


def test_a_run_is_paused_resumed_exported_measured_and_sampled(make: Make, tmp_path: Path) -> None:
    whole, _ = losses(make(), tmp_path / "runs")
    sample = {"prompts": ["the model"], "max_new_tokens": 4}
    recipe = make(checkpoint={"every": 2}, zero={"stage": 3}, sample=sample)
    job = tiny_job(recipe, tmp_path / "runs", world_size=2, until=2)
    assert set(run_ranks(2, carry_out, job)) == {"paused"}
    assert set(run_ranks(2, carry_out, Job(recipe, job.plan, job.folder))) == {"finished"}
    lines = read_metrics(job.folder.metrics)
    assert [line["train/loss"] for line in lines] == pytest.approx(whole, rel=1e-5)

    with pytest.raises(UsageError, match=r"recurrent.py:RecurrentLM\), which would be executed here.*add --trust"):
        load_trained(job.folder)
    trained = load_trained(job.folder, trust=True)
    measured = [line["eval/validation/loss"] for line in lines if "eval/validation/loss" in line]
    assert trained.evaluate(8)["loss"] == pytest.approx(measured[-1], rel=1e-5)
    drawn = json.loads(job.folder.samples.read_text().splitlines()[-1])
    (text,) = trained.sample(["the model"], max_new_tokens=4, temperature=0.0, seed=0)
    assert text == drawn["text"]
    folder = export_checkpoint(job.folder, 2, tmp_path / "out", trust=True)
    assert load_file(folder / "model.safetensors").keys() == load_file(job.folder.final / "model.safetensors").keys()
    card = (job.folder.final / "README.md").read_text()
    assert "library_name: pytorch" in card
    with pytest.raises(UsageError, match="lm-eval loads models of transformers, and this run trained a module"):
        measure_run(job.folder, ["task"], trust=True)

    # The weights of one run are where another begins.
    later = make(model={"pretrained": str(job.folder.final)}, train={"steps": 2})
    found, _ = losses(later, tmp_path / "runs")
    assert found[0] < whole[0] - 0.1


def test_it_trains_in_bf16(make: Make, tmp_path: Path) -> None:
    exact, _ = losses(make(), tmp_path / "runs")
    found, job = losses(make(train={"precision": "bf16"}, zero={"stage": 2}), tmp_path / "runs")
    assert found == pytest.approx(exact, rel=2e-2)
    assert load_file(job.folder.final / "model.safetensors")["embed.weight"].dtype == torch.bfloat16
    model: Any = load_trained(job.folder, trust=True).model
    assert next(model.parameters()).dtype == torch.bfloat16
