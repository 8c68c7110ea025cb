"""Recipes whose ranks cannot lie as they ask are refused, each with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.cluster import cluster_rules
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Recipe


def recipe(parallel: int = 1, **cluster: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "placed",
            "model": {
                "family": "mixtral",
                "config": {"num_local_experts": 4},
                "experts": {"balance": 0.01},
            },
            "parallel": {"expert": parallel},
            "data": {"sequence_length": 32, "train": [{"source": "python-docs"}]},
            "train": {"steps": 10, "global_batch": 8, "precision": "fp32"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "zero": {"stage": 2},
            "cluster": {"workers": 4, **cluster},
        }
    )


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        {"placement": "strict_spread"},
        {"placement": "strict_pack", "workers_per_node": 8},
        {"placement": "spread", "workers_per_node": 2},
        {"parallel": 2, "workers_per_node": 2},
        {"gpus_per_worker": 0.25, "workers": 1},
        {"gpus_per_worker": 0.75},
    ],
)
def test_what_works_is_not_refused(cluster: dict[str, Any]) -> None:
    assert list(cluster_rules(recipe(**cluster))) == []


@pytest.mark.parametrize(
    ("cluster", "path", "words"),
    [
        ({"placement": "strict_spread", "workers_per_node": 2}, "placement", "workers_per_node is 2; remove one"),
        ({"placement": "strict_pack", "workers_per_node": 2}, "placement", "all 4 workers on one node"),
        ({"parallel": 2, "placement": "strict_spread"}, "placement", "use pack or spread"),
        (
            {"parallel": 4, "workers_per_node": 2},
            "workers_per_node",
            "2 is not a multiple of 4: 4 ranks share the experts",
        ),
    ],
)
def test_what_cannot_work_is_refused(cluster: dict[str, Any], path: str, words: str) -> None:
    found = [message for where, message in check(recipe(**cluster)) if where == ("cluster", path)]
    assert len(found) == 1
    assert words in found[0]
