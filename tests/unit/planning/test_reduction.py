"""How gradients are reduced: buckets that grow with the ranks, bytes that are sent, and what earlier runs did."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.planning.reduction import (
    Buckets,
    accumulation_type,
    bucket_elements,
    buckets_of,
    prefetch_elements,
    reduced_bytes_per_step,
)
from shardyard.recipe.earlier import complete
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Recipe, Zero


def recipe_of(precision: str = "bf16", **zero: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "reduced",
            "model": {"family": "gpt2"},
            "data": {"sequence_length": 64, "train": [{"source": "python-docs"}]},
            "train": {"global_batch": 8, "steps": 1, "precision": precision},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "zero": zero,
        }
    )


@pytest.mark.parametrize(
    ("ranks", "elements"), [(1, 40_000_000), (40, 40_000_000), (128, 128_000_000), (1024, 500_000_000)]
)
def test_buckets_grow_with_the_ranks(ranks: int, elements: int) -> None:
    """Megatron-LM: max(40 million, 1 million × data-parallel size); no more than DeepSpeed's default."""
    assert bucket_elements(Zero(), ranks) == elements
    assert prefetch_elements(Zero(), ranks) == min(elements, 50_000_000)


def test_a_bucket_is_as_given_or_no_larger_than_the_model() -> None:
    assert bucket_elements(Zero(bucket_bytes=8_000_000), 1024, 999) == 2_000_000
    assert prefetch_elements(Zero(bucket_bytes=800_000_000), 1) == 200_000_000
    assert bucket_elements(Zero(), 1024, 999) == 1000, "pairs of numbers"


@pytest.mark.parametrize(("stage", "times"), [(0, 1), (1, 1), (2, 4), (3, 4)])
def test_bytes_handed_to_reductions(stage: int, times: int) -> None:
    """Stages 2 and 3 reduce after each micro-batch."""
    assert reduced_bytes_per_step(recipe_of(stage=stage), 1000, 4) == times * 4000
    assert reduced_bytes_per_step(recipe_of(stage=stage, communication_data_type="bf16"), 1000, 4) == times * 2000


def test_the_buffers_of_reductions() -> None:
    flat = buckets_of(recipe_of(stage=1), 1000, 2)
    assert flat == Buckets(4000, 0, at_the_end=True), "a flat copy of the accumulated gradients"
    assert buckets_of(recipe_of(stage=1, communication_data_type="bf16"), 1000, 2) == Buckets(4000, 2000, True)
    assert buckets_of(recipe_of(stage=2), 1000, 2) == Buckets(2 * 2000, 4000, at_the_end=True)
    assert buckets_of(recipe_of(stage=2, communication_data_type="bf16"), 1000, 2) == Buckets(2 * 2000, 0, True)
    assert buckets_of(recipe_of("fp32", stage=2), 1000, 2) == Buckets(2 * 4000, 0, at_the_end=True)


def test_buckets_are_as_large_as_given_and_one_without_overlap() -> None:
    """DeepSpeed allocates what `reduce_bucket_size` says, and fills no more than the model has."""
    given = recipe_of(stage=2, bucket_bytes=40_000)
    assert buckets_of(given, 1000, 2, gpu=False) == Buckets(10_000 * 2, 4000, at_the_end=True)
    assert buckets_of(given, 100_000, 2, gpu=False) == Buckets(10_000 * 2, 40_000, at_the_end=False)
    assert buckets_of(given, 100_000, 2).collected == 2 * 10_000 * 2


@pytest.mark.parametrize(
    ("precision", "stage", "sent", "accumulated"),
    [
        ("bf16", 0, "bf16", "bf16"),
        ("bf16", 1, "bf16", "fp32"),
        ("fp16", 0, "fp16", "fp16"),
        ("fp16", 2, "fp16", "fp16"),
        ("fp32", 2, "fp32", "fp32"),
    ],
)
def test_runs_of_earlier_versions_keep_their_formats(precision: str, stage: int, sent: str, accumulated: str) -> None:
    fields = {"train": {"precision": precision}, "zero": {"stage": stage, "bucket_bytes": 100_000_000}}
    complete(fields)
    kept = recipe_of(precision, **fields["zero"])
    assert kept.zero.communication_data_type == sent
    assert accumulation_type(kept) == accumulated
    assert bucket_elements(kept.zero, 1024, 10) == 25_000_000
    now = recipe_of(precision, stage=stage)
    assert (now.zero.communication_data_type, accumulation_type(now)) == ("fp32", "fp32")
