"""A dry run as a person starts one: what it prints, what it leaves, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from breadth.dry_runs import parts_of
from support.cli import Command

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_a_dry_run_trains_exports_and_compares_memory(tmp_path: Path) -> None:
    with Command("launch", "gpt/llama2-13b", "--dry-run", "4", runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    assert "dry run of llama2-13b: 2 of 40 layers" in output
    ratios = {name: float(part.ratio) for name, part in parts_of(output).items()}
    assert ratios["gradients"] == ratios["optimizer"] == 1.0, output
    assert ratios["all"] == pytest.approx(1.0, abs=0.1), output
    (run,) = (tmp_path / "runs" / "dry-runs").glob("llama2-13b-dry-run-*")
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert AutoModelForCausalLM.from_pretrained(run / "final").config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dry-run", "0"), "greater than or equal to 1"),
        (("--dry-run", "four"), "valid integer"),
        (("--dry-run", "2", "--until", "3"), "leave out --local, --until and --try"),
        (("--dry-rum", "2"), "--dry-run"),
    ],
)
def test_what_cannot_be_dry_run_is_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with Command("launch", "gpt/llama2-13b", *arguments, runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 2
    assert said in output
    assert not (tmp_path / "runs").exists()
