"""Compiled blocks behind frozen embeddings at ZeRO stage 3: their input needs a gradient for theirs to be reduced.

Blocks go through torch's tracing and its partitioner, but not through the generation of code, which takes a minute.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from shardyard.engine.job import Job
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import CONFIGS, tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow
STEPS = 4


def _train(rank: Rank, jobs: list[Job]) -> list[str]:
    torch.compile = partial(torch.compile, backend="aot_eager_decomp_partition")
    return [run_rank(job, rank) for job in jobs]


def test_they_train_as_they_do_without_compiling(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, 100)

    def job(*, compiled: bool, frozen: list[str]) -> Job:
        model: dict[str, Any] = {"config": CONFIGS["llama"], "compile": compiled, "freeze": frozen}
        recipe = tiny_recipe(
            corpus,
            family="llama",
            model=model,
            train={"steps": STEPS, "global_batch": 4},
            schedule={"warmup": 1},
            zero={"stage": 3},
            checkpoint={"every": STEPS},
            evaluate={"every": STEPS, "rows": 4},
        )
        return tiny_job(recipe, tmp_path / "runs", world_size=1)

    plain, compiled = job(compiled=False, frozen=["*embed_tokens*"]), job(compiled=True, frozen=["*embed_tokens*"])
    assert run_ranks(1, _train, [plain, compiled]) == [["finished", "finished"]]
    expected, found = ([line["train/loss"] for line in read_metrics(one.folder.metrics)] for one in (plain, compiled))
    assert len(found) == STEPS
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[-1] < found[0]
