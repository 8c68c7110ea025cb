"""Tokens of a step: all ranks, each row once, without padding, and with what is no text as the plan counts it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shardyard.engine.row_use import RowUse

ROWS, LENGTH, PLANNED = 4, 50, 4 * (50 + 30)


def use_of(objective: str, *, world: int = 1, data: int = 1, stage: Any = None, **fields: Any) -> Any:
    recipe: Any = SimpleNamespace(
        objective=objective,
        train=SimpleNamespace(global_batch=ROWS),
        data=SimpleNamespace(sequence_length=LENGTH, packing=None, isolation="auto", isolate_documents=True, **fields),
    )
    plan: Any = SimpleNamespace(tokens_per_step=PLANNED, stage_at=lambda step: stage)
    mesh: Any = SimpleNamespace(world=SimpleNamespace(size=world), data=SimpleNamespace(size=data))
    return RowUse(recipe, plan, mesh)


@pytest.mark.parametrize(
    ("objective", "summed", "tokens"),
    [
        ("seq2seq", [90, 120, 0, 0], 90),
        ("speech_to_text", [90, 120, 0, 0], PLANNED - ROWS * LENGTH + 90),
        ("image_classification", [0, 0, 0, 0], PLANNED),
    ],
)
def test_padding_is_not_counted_and_patches_are(objective: str, summed: list[float], tokens: float) -> None:
    use = use_of(objective)
    use.take(summed)
    assert use.tokens(1) == tokens


def test_ranks_that_read_the_same_rows_count_once() -> None:
    use = use_of("seq2seq", world=4, data=2)
    use.take([180, 240, 2, 6])
    assert use.metrics() == {"data/row_fill": 0.75, "data/cut_documents": 1, "data/cut_tokens": 3}


def test_a_stage_has_rows_of_its_own() -> None:
    use = use_of("speech_to_text", stage=SimpleNamespace(tokens_per_step=300, global_batch=3, sequence_length=60))
    use.take([90, 120, 0, 0])
    assert use.tokens(5) == 300 - 3 * 60 + 90


def test_full_rows_have_no_share_and_pictures_alone_no_cuts() -> None:
    packed = use_of("causal_lm")
    packed.take([200, 200, 3, 40])
    assert packed.metrics() == {"data/cut_documents": 3, "data/cut_tokens": 40}
    pictures = use_of("image_classification")
    pictures.take([0, 0, 0, 0])
    assert pictures.metrics() == {}
