"""`shardyard sweep` where it starts nothing: files or commands, names, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.cli.main import run

SWEEP = "name: small\nrecipe: gpt/quickstart\nparameters:\n  optimizer.lr: {values: [1e-3, 3e-3]}\n"


def test_a_mistyped_command_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "lits"]) == 2
    assert "did you mean 'list'?" in capsys.readouterr().err
    assert run(["sweep", "lr-batch"]) == 2
    assert "did you mean 'sweeps/lr-batch'?" in capsys.readouterr().err


def test_a_broken_sweep_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP.replace("optimizer.lr", "optimzer.lr"))
    assert run(["sweep", str(path), "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "unknown key 'optimzer'; did you mean 'optimizer'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_validate_knows_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP)
    assert run(["validate", str(path), "gpt/quickstart"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("a sweep")
    path.write_text(SWEEP + "serch: {}\n")
    assert run(["validate", str(path)]) == 2
    assert "did you mean 'search'?" in capsys.readouterr().err


def test_a_sweep_is_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "sweeps/lr-batch"]) == 2
    assert "is a sweep, not a recipe; `shardyard sweep sweeps/lr-batch` runs it" in capsys.readouterr().err


def test_sweeps_are_listed_and_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from shardyard.launch.sweep.folder import SweepFolder
    from shardyard.recipe.sweep.load import load_sweep

    path, runs = tmp_path / "small.yaml", ["--runs-dir", str(tmp_path / "runs")]
    path.write_text(SWEEP)
    (tmp_path / "runs").mkdir()
    assert run(["sweep", "list", *runs]) == 0
    assert "There are no sweeps" in capsys.readouterr().err
    folder = SweepFolder.create(tmp_path / "runs", load_sweep(str(path)))
    assert run(["sweep", "list", "-q", *runs]) == 0
    assert capsys.readouterr().out.strip() == folder.id
    assert run(["sweep", "list", "--json", *runs]) == 0
    assert json.loads(capsys.readouterr().out) == [{"sweep": folder.id, "state": "pending", "ended": 0, "best": None}]
    assert run(["runs", *runs]) == 0, "a sweep is not a run"
    assert folder.id not in capsys.readouterr().out
    for arguments, expected in (
        (["stop", "latest"], "is not running"),
        (["best", "latest"], "no trial of"),
        (["fit", "latest"], "no trial of"),
        (["fit", "latest", "--form", "other"], "must be hoffmann or kaplan"),
        (["show", "other"], "is called 'other'"),
        (["show", "latest", "--plot", "figure.gif"], "has to end in .svg or .png"),
    ):
        assert run(["sweep", *arguments, *runs]) == 2, arguments
        assert expected in capsys.readouterr().err
