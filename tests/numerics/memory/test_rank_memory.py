"""What a rank needs while a model is loaded and exported at ZeRO stage 3: its share of the weights and one block."""

from __future__ import annotations

from pathlib import Path

import pytest

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
