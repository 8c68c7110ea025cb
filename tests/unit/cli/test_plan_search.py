"""`shardyard plan`: changes that make a recipe fit or go faster, and the front of `--search`."""

from __future__ import annotations

import json

import pytest

from shardyard.cli import main as cli

H100 = ["plan", "gpt/llama3-8b", "--gpu", "h100-80gb", "--gpus", "8"]


@pytest.mark.slow
def test_a_plan_ends_with_what_makes_it_faster(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(H100) == 0
    name, change, gain = capsys.readouterr().out.splitlines()[-1].split("\t")
    assert name.startswith("faster")
    assert change.startswith("-s ")
    assert "tokens/s a GPU" in gain
    assert cli.run([*H100, "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert changes[-1]["overrides"] == change.removeprefix("-s ").split(" -s ")
    # The proposed overrides are those of the command line.
    assert cli.run([*H100, *(part for one in changes[-1]["overrides"] for part in ("-s", one)), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device_bytes"] == changes[-1]["device_bytes"]
    assert told["forecast"]["tokens_per_second"] == pytest.approx(changes[-1]["tokens_per_second"])


@pytest.mark.slow
def test_a_plan_that_fits_nowhere_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["plan", "gpt/llama2-70b", "--gpu", "rtx-4090", "--gpus", "8"]
    assert cli.run(small) == 0
    lines = capsys.readouterr().out.splitlines()
    (missing,) = [line for line in lines if line.startswith("missing\t")]
    (fits,) = [line for line in lines if line.startswith("fits\t")]
    assert "of these GPUs" in fits
    assert cli.run([*small, "--search"]) == 0
    assert capsys.readouterr().out.splitlines() == [missing, fits]


@pytest.mark.slow
def test_the_front(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*H100, "--search"]) == 0
    printed = capsys.readouterr()
    rows = [line.split("\t") for line in printed.out.splitlines()]
    assert rows[0][0] == "8"
    assert {row[0] for row in rows} > {"8", "4"}
    assert "ways were planned" in printed.err
    assert cli.run([*H100, "--search", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [str(one["gpus"]) for one in told] == [row[0] for row in rows]
    # A way with fewer changes stands for one that is less than 2 % faster.
    assert told[0]["tokens_per_second"] > 0.98 * max(one["tokens_per_second"] for one in told)


def test_a_search_needs_an_accelerator(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "gpt/llama3-8b", "--search"]) == 2
    assert "--search compares speeds" in capsys.readouterr().err


def test_without_an_accelerator_a_plan_that_does_not_fit_is_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "gpt/gpt2-1.5b", "--memory", "12GiB"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line[0] == "fits 1"]
    assert cli.run(["plan", "gpt/gpt2-1.5b", "--memory", "80GiB"]) == 0
    assert "fits 1" not in capsys.readouterr().out
