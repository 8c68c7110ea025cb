"""Stages through Ray: killed within one and resumed on two ranks, with the rows and losses of an undisturbed one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.inference.step_documents import documents_of_step
from shardyard.tracking.run.folder import RunFolder
from support.cli import Command, write_recipe
from support.hold import held_by
from support.tiny import write_corpus

pytestmark = pytest.mark.slow

STEPS = 18


def losses(command: Command) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in command.metrics()}


def rows_of(command: Command, step: int) -> list[tuple[Any, ...]]:
    found = documents_of_step(RunFolder(command.folder), step)
    assert found["problem"] is None
    return [(part["row"], part["source"], part["document"], part["text"]) for part in found["documents"]]


def test_killed_within_a_stage_and_resumed_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path, 200, seed) for seed in (0, 1)]
    held = tmp_path / "held"
    sections: dict[str, Any] = {
        "model": {"dropout": 0.0},
        "data": {
            "train": [{"path": str(corpora[0]), "holdout": 0.1}, {"path": str(corpora[1]), "tokens": 4000}],
            "stages": [{"at": 6, "weights": [1.0, 2.0], "sequence_length": 64, "global_batch": 4}],
        },
        "train": {"steps": STEPS, "precision": "fp32"},
        "checkpoint": {"every": 3},
        "sample": {"prompts": []},
    }
    plain = write_recipe(tmp_path, corpora[0], **sections, cluster={"workers": 1})
    with Command("launch", plain, "--local", runs=tmp_path / "straight") as straight:
        code, output = straight.finish()
    assert code == 0, output
    held.write_text("11")
    with Command(
        "launch", write_recipe(tmp_path, corpora[0], **sections, hooks=held_by(held)), runs=tmp_path / "runs"
    ) as command:
        command.wait_for(lambda: list(command.runs.glob("*/checkpoints/step-00000009/manifest.json")))
        workers = [process for process in command.descendants() if "RankWorker" in " ".join(process.cmdline())]
        assert len(workers) == 2
        command.process.kill()
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
    held.unlink()
    with Command("resume", "latest", runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    assert [event["resumed_step"] for event in command.events("attempt")] == [None, 9]
    expected = losses(straight)
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert losses(command) == pytest.approx(expected, rel=2e-5)
    # Rows of both stages, from the beginning and from a checkpoint within the second.
    for step in (6, 7, STEPS):
        ours = rows_of(command, step)
        assert ours == rows_of(straight, step)
        assert len({row for row, *_ in ours}) == (8 if step <= 6 else 4)
    assert len(command.events("stage")) == 1
