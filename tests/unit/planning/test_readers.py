"""Readers and cores by the kind of data, and fewer where a cluster has fewer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardyard.planning.placement import Amount, Node, demand_of, judge, within
from shardyard.planning.readers import cpus_of, readers_here, readers_of
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, list(overrides)).recipe


@pytest.mark.parametrize(
    ("name", "overrides", "gpu", "readers", "cores", "why"),
    [
        ("gpt/gpt2-124m", [], True, 3, 4, "text that is tokenised on a GPU"),
        ("gpt/gpt2-124m", ["tokenizer=bytes"], True, 1, 2, "bytes on a GPU"),
        ("vision/vit-b16", [], True, 8, 9, "pictures or sound on a GPU"),
        ("gpt/gpt2-124m", [], False, 0, 1, "cores of a CPU rank are for training"),
        ("gpt/gpt2-124m", ["data.readers=2"], False, 2, 3, "given by data.readers"),
        ("gpt/gpt2-124m", ["data.readers=0"], True, 0, 1, "given by data.readers"),
        ("gpt/gpt2-124m", ["cluster.cpus_per_worker=2"], True, 1, 2, "cluster.cpus_per_worker is 2"),
        ("gpt/gpt2-124m", ["cluster.cpus_per_worker=1"], True, 0, 1, "cluster.cpus_per_worker is 1"),
        ("gpt/gpt2-124m", ["cluster.cpus_per_worker=16"], True, 3, 16, "text that is tokenised"),
        ("gpt/gpt2-124m", ["cluster.cpus_per_worker=2", "data.readers=6"], True, 6, 2, "given by data.readers"),
    ],
)
def test_readers_and_cores(name: str, overrides: list[str], gpu: bool, readers: int, cores: int, why: str) -> None:
    chosen = recipe(name, *overrides)
    assert readers_of(chosen, gpu=gpu)[0] == readers
    assert why in readers_of(chosen, gpu=gpu)[1]
    assert cpus_of(chosen, gpu=gpu)[0] == cores


def test_a_host_may_have_fewer_cores() -> None:
    derived = recipe("vision/vit-b16")
    assert [readers_here(8, derived, cores=cores, ranks=2) for cores in (64, 18, 8, 4, 2, 1)] == [8, 8, 3, 1, 0, 0]
    assert readers_here(8, recipe("vision/vit-b16", "data.readers=8"), cores=2, ranks=2) == 8


def node(cpus: float, gpus: float = 0.0) -> Node:
    return Node(f"n{cpus}", Amount(cpus, gpus, 1e12), Amount(cpus, gpus, 1e12))


def test_a_derived_number_of_cores_never_keeps_a_run_from_starting() -> None:
    asked = demand_of(recipe("vision/vit-b16", "cluster.workers=4"), gpu=True)
    assert within(asked, [node(64, 8)]) == asked
    assert within(asked, [node(8, 4)]).bundle.cpus == 2
    assert within(asked, [node(4, 4)]).bundle.cpus == 1
    assert within(asked, [node(12, 2), node(8, 2)]).bundle.cpus == 4
    # What does not fit with one core either is refused as it is asked for.
    assert within(asked, [node(64, 2)]) == asked
    two = demand_of(recipe("gpt/gpt2-124m", "cluster.workers=2", "data.readers=2"), gpu=False)
    assert judge(within(two, [node(2)]), [node(2)]).ever is not None
    given = replace(asked, cpus_given=True)
    assert within(given, [node(4, 4)]) == given
