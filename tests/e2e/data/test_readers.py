"""Readers and ranks through Ray: a run of two ranks is killed, goes on with one and other readers, then with two, and
trains what it would have."""

from __future__ import annotations

import contextlib
import signal
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


def test_a_killed_run_goes_on_with_other_readers_and_ranks(tmp_path: Path) -> None:
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
        zero={"stage": 0},
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
    held.write_text("8")
    with Command("resume", "latest", "-s", "data.readers=1", "-s", "cluster.workers=1", runs=runs) as command:
        command.wait_for_step(7)
        command.process.send_signal(signal.SIGINT)
        held.unlink()
        code, output = command.finish()
    assert code != 0, output
    with Command("resume", "latest", "-s", "data.readers=0", "-s", "cluster.workers=2", runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    attempts = [(event["world_size"], event["resumed_step"]) for event in command.events("attempt")]
    assert attempts[:2] == [(2, None), (1, 3)]
    assert attempts[2:] in ([(2, 8)], [(2, 9)]), "from where the signal met it"
    assert losses(command) == pytest.approx(losses(whole), rel=1e-5)
    assert set(losses(command)) == set(range(1, STEPS + 1))
    ours, theirs = RunFolder(command.folder), RunFolder(whole.folder)
    for step in (2, 4, 8, 9, STEPS):
        assert documents(ours, step) == documents(theirs, step) != []
