"""The numbers of workers that an elastic run may have."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.rules import check
from shardyard.recipe.rules.sizes import sizes_of
from shardyard.recipe.schema import Recipe


def recipe(cluster: dict[str, Any], *, batch: int = 24, **sections: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "sizes",
            "model": {"family": "llama", "config": {"num_attention_heads": 4, "num_key_value_heads": 4}},
            "data": {"sequence_length": 32, "isolate_documents": False, "train": [{"source": "python-docs"}]},
            "train": {"steps": 10, "global_batch": batch},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "cluster": cluster,
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("made", "sizes"),
    [
        (recipe({"workers": 8}), [8]),
        (recipe({"workers": 8, "min_workers": 8}), [8]),
        (recipe({"workers": 8, "min_workers": 2}), [8, 6, 4, 3, 2]),
        (recipe({"workers": 8, "min_workers": 2}, parallel={"tensor": 2}, zero={"stage": 1}), [8, 6, 4, 2]),
        (recipe({"workers": 8, "min_workers": 1}, batch=64), [8, 4, 2, 1]),
        # The number of streams must not change: 72 rows have 36 streams on 4 ranks.
        (recipe({"workers": 12, "min_workers": 1}, batch=72), [12, 9, 6, 4, 3, 2, 1]),
        (recipe({"workers": 4, "min_workers": 1}, zero={"stage": 3, "hpz_partition_size": 2}), [4]),
    ],
)
def test_only_sizes_with_the_same_global_batches_serve(made: Recipe, sizes: list[int]) -> None:
    assert sizes_of(made) == sizes


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"workers": 2, "min_workers": 4}, "is 4, but cluster.workers, the most, is 2"),
        (
            {"workers": 8, "min_workers": 5},
            (
                "5 workers cannot train: 24 rows of a global batch cannot be shared by 5; numbers that can: "
                "8, 6, 4, 3, 2, 1"
            ),
        ),
    ],
)
def test_a_least_number_that_cannot_be_reached_is_refused(cluster: dict[str, Any], said: str) -> None:
    assert [message for path, message in check(recipe(cluster)) if path == ("cluster", "min_workers")] == [said]
