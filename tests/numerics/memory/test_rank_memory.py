"""What a rank needs while a model is loaded and exported at ZeRO stage 3: its share of the weights and one block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from shardyard.engine.checkpoint import gathering, weights
from shardyard.engine.run import Job
from shardyard.engine.world import Rank
from shardyard.models.export import layout
from support.memory.ranks import make_job, measure
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

PARAMETERS, RANKS = 7e7, 2


def test_a_rank_needs_its_share_and_one_block(tmp_path: Path) -> None:
    job = make_job(tmp_path, PARAMETERS, RANKS)
    for found in run_ranks(RANKS, measure, job, str(tmp_path / "final"), False, 20 * 10**6):
        # A rank that holds all weights, or gathers two blocks at once, needs more than the bound.
        assert found.bound < 0.7 * RANKS * found.share
        assert found.share < found.load < found.bound
        assert found.share < found.export < found.bound
    assert len(list((tmp_path / "final").glob("*.safetensors"))) > RANKS


def in_parts(rank: Rank, job: Job, destination: str) -> int:
    """Export with parts of 1,000 bytes; returns how many pieces this rank has got."""
    layout.PIECE_BYTES, gathering.PART_BYTES = 4096, 1000
    received, sent_in_parts = [0], weights.sent_in_parts

    def counted(*given: Any) -> Iterator[tuple[int, Tensor | None]]:
        for first, part in sent_in_parts(*given):
            assert part is None or part.nbytes <= 1000
            received[0] += part is not None
            yield first, part

    weights.sent_in_parts = counted
    measure(rank, job, destination, False, 20_000)
    return received[0]


def test_large_weights_are_exported_in_parts(tmp_path: Path) -> None:
    job = make_job(tmp_path, 1.1e5, 2)
    assert min(run_ranks(2, in_parts, job, str(tmp_path / "final"))) > 30
    exported, start = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("final", "start")
    )
    assert all(torch.equal(exported[name], value) for name, value in start.items())
