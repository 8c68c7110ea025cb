"""Readers through Ray: a run of two ranks is killed, goes on with other readers, and trains what it would have."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.engine.inference.step_documents import documents_of_step
from shardyard.tracking.run.folder import RunFolder
from support.cli import Command, write_recipe
from support.hold import held_by
from support.tiny import write_corpus
from support.waiting import until

pytestmark = pytest.mark.slow

STEPS = 12


def losses(command: Command) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in command.metrics() if "train/loss" in line}


def documents(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """What a step was trained on, whichever rank read it."""
    return [{**part, "rank": None} for part in documents_of_step(folder, step, 2)["documents"]]


def test_a_killed_run_goes_on_with_other_readers(tmp_path: Path) -> None:
    held = tmp_path / "held"
    recipe = write_recipe(
        tmp_path,
        write_corpus(tmp_path),
        train={"steps": STEPS, "precision": "fp32"},
        model={
            "family": "gpt2",
            "config": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64},
            "dropout": 0.0,
        },
        checkpoint={"every": 3},
        evaluate={"every": STEPS, "rows": 8},
        sample={"prompts": []},
        cluster={"workers": 2, "max_failures": 0},
        hooks=held_by(held),
    )
    with Command("launch", recipe, "--local", "-s", "data.readers=0", runs=tmp_path / "whole") as whole:
        code, output = whole.finish()
    assert code == 0, output
    held.write_text("5")
    runs = tmp_path / "runs"
    with Command("launch", recipe, "-s", "data.readers=2", runs=runs) as command:
        command.wait_for_step(4)  # It is held within the fifth.
        started = command.descendants()
        for process in [psutil.Process(command.process.pid), *started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        until(
            lambda: not any(process.is_running() and process.status() != "zombie" for process in started), "all ended"
        )
    held.unlink()
    with Command("resume", "latest", "-s", "data.readers=1", runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    assert [event["resumed_step"] for event in command.events("attempt")] == [None, 3]
    assert losses(command) == pytest.approx(losses(whole), rel=1e-5)
    assert set(losses(command)) == set(range(1, STEPS + 1))
    ours, theirs = RunFolder(command.folder), RunFolder(whole.folder)
    for step in (2, 4, 8, 9, STEPS):
        assert documents(ours, step) == documents(theirs, step) != []
