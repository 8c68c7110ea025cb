"""Runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.cli.main import run
from shardyard.tracking.run.comparison import differences, flatten
from shardyard.tracking.run.folder import RunFolder


def make(runs: Path, lr: float, lines: list[dict[str, float]], **more: str) -> RunFolder:
    sources = "".join(f"    - {{source: {name}}}\n" for name in more.get("sources", "plays").split())
    head = f"name: tiny\ndescription: lr {lr}\ndata:\n  train:\n{sources}"
    recipe = f"{head}optimizer: {{name: adamw, lr: {lr}}}\nschedule: {{warmup: 5}}\n"
    folder = RunFolder.create(runs, "tiny", recipe, recipe)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    first = make(tmp_path, 1e-3, [{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 2.5}])
    measured = {
        "step": 2,
        "train/loss": 2.25,
        "train/tokens": 61440,
        "eval/validation/loss": 2.5,
        "eval/validation/moe/tokens/0/1": 7.0,
    }
    return first, make(tmp_path, 2e-3, [measured], sources="plays verses")


def test_only_what_differs_is_told(
    two: tuple[RunFolder, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", two[0].id, two[1].id, "--runs-dir", str(tmp_path)]) == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows == {
        "run": [two[0].id, two[1].id],
        "state": ["pending", "pending"],
        "step": ["2", "2"],
        "optimizer.lr": ["0.001", "0.002"],
        "data.train.1.source": ["-", "verses"],
        "train/loss": ["2.5000", "2.2500"],
        "train/tokens": ["-", "61,440"],
        "eval/validation/loss": ["-", "2.5000"],
    }


def test_json_has_one_object_a_run(
    two: tuple[RunFolder, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", two[1].id, two[0].id, "--json", "--runs-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["run"] for one in found] == [two[1].id, two[0].id]
    assert found[0]["recipe"] == {"optimizer.lr": 0.002, "data.train.1.source": "verses"}
    assert found[1]["metrics"] == {"train/loss": 2.5, "train/tokens": None, "eval/validation/loss": None}


def test_one_run_is_no_comparison(
    two: tuple[RunFolder, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", two[0].id, two[0].id, "--runs-dir", str(tmp_path)]) == 2
    assert "needs at least two different runs" in capsys.readouterr().err
    two[0].resolved.write_text("name: [")
    assert run(["compare", two[0].id, two[1].id, "--runs-dir", str(tmp_path)]) == 2
    assert "its recipe cannot be read" in capsys.readouterr().err


def test_sections_are_flattened_to_fields() -> None:
    recipe = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": [{"f": None}]}
    assert flatten(recipe) == {"a.b": 1, "a.c": {}, "d": [1, 2], "e.0.f": None}
    assert differences([{"x": 1, "y": 2}, {"x": 1, "z": 3}]) == {"y": (2, None), "z": (None, 3)}
