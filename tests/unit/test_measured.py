"""Sizes that were measured before are taken from the disk, as long as nothing that they follow from has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardyard.launch import measured
from shardyard.launch.measured import keep, recall
from shardyard.launch.prepare import prepare
from shardyard.recipe.architecture import Architecture
from shardyard.recipe.load import load_recipe
from shardyard.recipe.plan import World
from shardyard.recipe.schema import Recipe
from support.waiting import PATIENCE_SECONDS

SHIPPED = measured.SIZES
SIZES = Architecture("gpt2", 10, 9, 8, 7, 6, 5, 4, None, flops_per_row=1.5)


def quickstart(*overrides: str) -> Recipe:
    return load_recipe("gpt/quickstart", list(overrides)).recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "SIZES", "none.json")
    return tmp_path


def test_the_first_plan_of_a_shipped_recipe_takes_its_sizes_from_beside_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "SIZES", SHIPPED)
    shipped = recall(quickstart())
    assert shipped is not None
    assert shipped == prepare(quickstart(), World(size=2, gpu=False, device_bytes=None)).architecture
    assert (
        recall(quickstart("train.steps=7", "optimizer.lr=1", "data.train.0.weight=2", "schedule.warmup=0")) == shipped
    )
    assert recall(quickstart("model.config.n_layer=3")) is None
    assert recall(quickstart("tokenizer=bpe-docs-4k")) is None
    monkeypatch.setattr(measured.metadata, "version", lambda name: "0")
    assert recall(quickstart()) is None
    assert not list(cache.iterdir())


def test_the_first_plan_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from shardyard.cli.main import run; assert run(['plan', 'gpt/quickstart']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, "SHARDYARD_CACHE": str(tmp_path / "new")},
    )
    assert done.returncode == 0, done.stderr


def test_sizes_are_recalled_for_the_same_model() -> None:
    assert recall(quickstart()) is None
    keep(quickstart(), SIZES)
    assert recall(quickstart()) == SIZES
    assert recall(quickstart("cluster.workers=1", "name=other")) == SIZES
    assert recall(quickstart("model.config.n_layer=3")) is None
    assert recall(quickstart("data.sequence_length=64")) is None


def test_other_versions_and_other_code_measure_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keep(quickstart(), SIZES)
    with monkeypatch.context() as patch:
        patch.setattr(measured.metadata, "version", lambda name: "0")
        assert recall(quickstart()) is None
    code = tmp_path / "package"
    code.mkdir()
    (code / "build.py").write_text("one = 1")
    monkeypatch.setattr(measured, "PACKAGE", code)
    keep(quickstart(), SIZES)
    assert recall(quickstart()) == SIZES
    (code / "build.py").write_text("one = 10")
    assert recall(quickstart()) is None


def test_a_changed_tokenizer_measures_anew(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    keep(quickstart(f"tokenizer={folder}"), SIZES)
    assert recall(quickstart(f"tokenizer={folder}")) == SIZES
    (folder / "tokenizer.json").write_text("{} ")
    assert recall(quickstart(f"tokenizer={folder}")) is None


@pytest.mark.parametrize("fields", [{"tokenizer": "someone/on-a-hub"}, {"pretrained": "someone/on-a-hub"}])
def test_what_lies_elsewhere_is_measured_each_time(fields: dict[str, Any]) -> None:
    recipe = quickstart()
    if "pretrained" in fields:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=fields)})
    else:
        recipe = recipe.model_copy(update=fields)
    keep(recipe, SIZES)
    assert recall(recipe) is None


def test_a_damaged_file_is_measured_anew(cache: Path) -> None:
    keep(quickstart(), SIZES)
    (path,) = (cache / "measured").iterdir()
    path.write_text('{"family": "gpt2"')
    assert recall(quickstart()) is None
    path.write_text('{"unknown": 1}')
    assert recall(quickstart()) is None


def test_a_remembered_plan_imports_neither_torch_nor_transformers(cache: Path) -> None:
    keep(quickstart(), SIZES)
    program = (
        "import sys; from shardyard.cli.plan import plan_of, _located; from shardyard.recipe.load import load_recipe; "
        "import shardyard.launch.driver; plan_of(_located(load_recipe('gpt/quickstart', [])), gpus=0); "
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
