"""A model with pretrained weights trains in training mode, as `from_pretrained` does not leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.engine.job import Job
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.folder import read_metrics
from support.pretrained import write_pretrained
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow


def _train(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


def test_dropout_is_on_from_the_first_step(tmp_path: Path) -> None:
    weights, corpus = write_pretrained(tmp_path / "weights"), write_corpus(tmp_path)
    jobs = [
        tiny_job(
            tiny_recipe(
                corpus,
                model={"pretrained": str(weights), "dropout": dropout},
                train={"steps": 1},
                schedule={"warmup": 0},
            ),
            tmp_path / f"runs-{dropout}",
        )
        for dropout in (0.0, 0.5)
    ]
    assert run_ranks(1, _train, jobs) == [["finished", "finished"]]
    plain, dropped = (read_metrics(job.folder.metrics)[0]["train/loss"] for job in jobs)
    assert abs(dropped - plain) > 0.01
