"""Sizes that were measured before are taken from the disk, as long as nothing that they follow from has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardyard.launch.run import architecture_cache
from shardyard.launch.run.architecture_cache import recall
from shardyard.launch.run.prepare import prepare
from shardyard.planning.architecture import Architecture
from shardyard.planning.plan import World
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from support.waiting import PATIENCE_SECONDS

SHIPPED = architecture_cache.SIZES
SIZES = Architecture("gpt2", 10, 9, 8, 7, 6, 5, 4, None, flops_per_row=1.5)


def quickstart(*overrides: str) -> Recipe:
    return load_recipe("gpt/quickstart", list(overrides)).recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(architecture_cache, "SIZES", "none.json")
    return tmp_path


def test_the_first_plan_of_a_shipped_recipe_takes_its_sizes_from_beside_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture_cache, "SIZES", SHIPPED)
    shipped = recall(quickstart())
    assert shipped is not None
    assert shipped == prepare(quickstart(), World(size=2, gpu=False, device_bytes=None)).architecture
    assert (
        recall(quickstart("train.steps=7", "optimizer.lr=1", "data.train.0.weight=2", "schedule.warmup=0")) == shipped
    )
    assert recall(quickstart("model.config.n_layer=3")) is None
    assert recall(quickstart("tokenizer=bpe-docs-4k")) is None
    monkeypatch.setattr(architecture_cache.metadata, "version", lambda name: "0")
    assert recall(quickstart()) is None
    assert [path.name for path in cache.iterdir()] == ["probed"]


def test_kept_sizes_are_those_of_every_run_of_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it reads and however it trains; what decides about sizes or findings makes another entry."""

    def own(*overrides: str) -> Recipe:
        return quickstart("model.config.n_layer=3", *overrides)

    architecture_cache.keep(own(), SIZES)
    assert recall(own()) == SIZES
    text = cache / "text.jsonl"
    text.write_text('{"text": "another"}\n')
    assert recall(own(f"data.train=[{{path: {text}, holdout: 0.1}}]", "zero.stage=3", "cluster.workers=4")) == SIZES
    assert recall(own("train.steps=7", "optimizer.lr=1", "schedule.warmup=0", "evaluate.every=5")) == SIZES
    for other in ("data.sequence_length=64", "model.config.n_head=2", "tokenizer=bpe-docs-4k"):
        assert recall(own(other)) is None, other
    taught = own().distillation.model_copy(update={"teacher": "elsewhere"})
    assert recall(own().model_copy(update={"distillation": taught})) is None
    monkeypatch.setattr(architecture_cache.metadata, "version", lambda name: "0")
    assert recall(own()) is None


def test_the_first_plan_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import shardyard.launch.run.driver; "
        "from shardyard.launch.run.plans import plan_of, without_weights; "
        "from shardyard.recipe.loading.load import load_recipe; "
        "plan_of(without_weights(load_recipe('gpt/quickstart', []), Path('runs')), gpus=0); "
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'datasets') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ},
        timeout=PATIENCE_SECONDS,
    )
    assert found.stdout.strip() == "[]"
