"""The mesh in numbers: axes multiply to the world, indices are a bijection, and groups partition the ranks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.errors import RecipeError
from shardyard.planning.plan import RunPlan, World, make_plan
from shardyard.planning.plan_text import as_dict, from_dict
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import MeshShape, data_mesh, data_size, mesh_shape, ranks_together
from shardyard.recipe.schema import Recipe
from support.measured import tiny_architecture

MIXTRAL = {"family": "mixtral", "config": {"num_local_experts": 8, "num_experts_per_tok": 2}}
SMALL = tiny_architecture("mixtral")
# Axes as they are today, and as they would be with others.
SHAPES = st.builds(
    lambda *sizes: MeshShape(
        tuple(zip(("pipeline", "expert_data", "expert", "sequence", "tensor"), sizes, strict=True))
    ),
    *[st.integers(1, 3)] * 5,
)
AXES = ("world", "data", "expert_data", "expert", "pipeline", "sequence", "tensor")


def recipe_of(workers: int, parallel: int = 1) -> Recipe:
    return parse_recipe(
        {
            "name": "mesh",
            "model": MIXTRAL,
            "parallel": {"expert": parallel},
            "data": {"sequence_length": 32, "train": [{"source": "python-docs"}]},
            "train": {"steps": 10, "global_batch": 8, "precision": "fp32"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "zero": {"stage": 1},
            "cluster": {"workers": workers},
        }
    )


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_sizes_multiply_to_the_world(shape: MeshShape) -> None:
    sizes = dict(shape.axes)
    assert shape.data == sizes["expert_data"] * sizes["expert"]
    assert shape.world == shape.data * sizes["pipeline"] * sizes["sequence"] * sizes["tensor"]
    assert [shape.size(name) for name, _ in shape.axes] == [size for _, size in shape.axes]
    assert shape.size("a name that is not there") == 1


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_indices_are_a_bijection(shape: MeshShape) -> None:
    names = [name for name, _ in shape.axes]
    places = [tuple(shape.index(name, rank) for name in names) for rank in range(shape.world)]
    assert len(set(places)) == shape.world
    assert all(0 <= place < size for row in places for place, (_, size) in zip(row, shape.axes, strict=True))
    assert [shape.index("world", rank) for rank in range(shape.world)] == list(range(shape.world))
    # Consecutive ranks differ in the innermost axis.
    assert places == sorted(places)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.sampled_from(AXES))
def test_groups_partition_the_ranks(shape: MeshShape, axis: str) -> None:
    groups = shape.groups(axis)
    assert sorted(rank for group in groups for rank in group) == list(range(shape.world))
    assert {len(group) for group in groups} == {shape.size(axis)}
    for group in groups:
        assert [shape.index(axis, rank) for rank in group] == list(range(shape.size(axis)))
        assert shape.ranks(axis, group[-1]) == group


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_each_row_is_read_by_one_index_along_data(shape: MeshShape) -> None:
    readers = {shape.same_data(rank) for rank in range(shape.world)}
    assert sorted(rank for group in readers for rank in group) == list(range(shape.world))
    assert len(readers) == shape.data
    assert all(len({shape.index("data", rank) for rank in group}) == 1 for group in readers)


def test_experts_are_spread_over_consecutive_data_parallel_ranks() -> None:
    shape = mesh_shape(recipe_of(8, parallel=4), 8)
    assert (shape.world, shape.data, shape.expert, str(shape)) == (8, 8, 4, "data 8, expert 4")
    assert shape.groups("expert") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert shape.groups("expert_data") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert [shape.same_data(rank) for rank in range(8)] == [(rank,) for rank in range(8)]
    assert (ranks_together(recipe_of(8, parallel=4)), data_size(recipe_of(8, parallel=4), 8)) == (4, 8)


def test_an_axis_inside_the_data_axis_pairs_consecutive_ranks() -> None:
    """Tensor parallelism, say: both ranks of a pair read the same rows, and pairs are what data parallelism counts."""
    shape = MeshShape((("expert_data", 2), ("expert", 1), ("tensor", 2)))
    assert (shape.world, shape.data, str(shape)) == (4, 2, "data 2, tensor 2")
    assert shape.groups("tensor") == [(0, 1), (2, 3)]
    assert shape.groups("data") == [(0, 2), (1, 3)]
    assert [shape.index("data", rank) for rank in range(4)] == [0, 0, 1, 1]
    assert (shape.same_data(1), shape.same_data(2)) == ((0, 1), (2, 3))


def test_a_checkpoint_knows_the_sizes_that_decide_its_files() -> None:
    alone = {"expert_parallel": 1, "sequence_parallel": 1, "tensor_parallel": 1}
    assert mesh_shape(recipe_of(4, parallel=2), 4).layout() == {"world_size": 4, **alone, "expert_parallel": 2}
    assert data_mesh(3).layout() == {"world_size": 3, **alone}


@pytest.mark.parametrize(
    ("ranks", "parallel", "fitting"), [(6, 4, "3, 2, 1"), (1, 2, "1"), (9, 6, "3, 1"), (10, 8, "5, 2, 1")]
)
def test_impossible_sizes_are_refused_with_those_that_are_not(ranks: int, parallel: int, fitting: str) -> None:
    with pytest.raises(RecipeError) as refused:
        mesh_shape(recipe_of(parallel, parallel) if parallel != 6 else recipe_of_six(), ranks)
    (problem,) = refused.value.problems
    assert problem.path == "parallel.expert"
    assert problem.message == (
        f"{ranks} rank(s) cannot be cut into groups of {parallel} that share experts; set it to {fitting}, or train on "
        f"a multiple of {parallel} ranks (cluster.workers)"
    )


def recipe_of_six() -> Recipe:
    made = recipe_of(1)
    return made.model_copy(update={"parallel": made.parallel.model_copy(update={"expert": 6})})


def test_a_rank_that_is_not_there_has_no_place() -> None:
    with pytest.raises(AssertionError, match="rank 4 of 4"):
        data_mesh(4).index("data", 4)


def test_the_plan_counts_rows_by_the_data_axis_and_knows_its_mesh() -> None:
    plan = _plan(parallel=2)
    assert (plan.world.size, plan.mesh) == (4, MeshShape((("expert_data", 2), ("expert", 2))))
    assert plan.rows_per_rank * plan.mesh.data == 8
    assert plan.micro_batch * plan.accumulation * plan.mesh.data == plan.deepspeed["train_batch_size"] == 8


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_plan_travels_as_json_and_one_written_before_it_had_a_mesh_is_read(parallel: int) -> None:
    plan = _plan(parallel)
    written: dict[str, Any] = json.loads(json.dumps(as_dict(plan)))
    assert from_dict(written) == plan
    del written["mesh"]
    assert from_dict(written) == plan
    with pytest.raises(ValueError, match="no plan"):
        from_dict({"world": 4})


def _plan(parallel: int) -> RunPlan:
    plan = make_plan(recipe_of(4, parallel), SMALL, World(size=4, gpu=False))
    # JSON has no tuples.
    return dataclasses.replace(plan, deepspeed=json.loads(json.dumps(plan.deepspeed)))
