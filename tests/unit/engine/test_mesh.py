"""The mesh of one process, and what of a run counts along which axis."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shardyard.engine import assemble
from shardyard.engine.hooks.evaluate import _passes
from shardyard.engine.mesh import Axis, single_process
from shardyard.planning.memory import estimate_memory
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import MeshShape, data_mesh
from shardyard.recipe.schema import Recipe
from support.measured import tiny_architecture

PAIRS = MeshShape((("expert_data", 2), ("expert", 1), ("tensor", 2)))
SMALL = tiny_architecture("gpt2")


def recipe_of(stage: int = 0) -> Recipe:
    return parse_recipe(
        {
            "name": "mesh",
            "model": {"family": "gpt2"},
            "data": {"sequence_length": 32, "train": [{"source": "python-docs"}]},
            "train": {"steps": 10, "global_batch": 8, "precision": "fp32"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "zero": {"stage": stage},
        }
    )


def test_one_process_has_nobody_to_talk_to() -> None:
    """No process group exists here, so anything that were sent would fail."""
    mesh = single_process(torch.device("cpu"))
    assert (mesh.shape, mesh.rank, mesh.is_first) == (data_mesh(1), 0, True)
    for axis in (mesh.world, mesh.data, mesh.expert):
        value = torch.tensor([3.0])
        axis.sum(value)
        assert (axis.size, axis.index, axis.ranks, float(value)) == (1, 0, (0,), 3.0)
        assert axis.start_sum(value) is None
        assert axis.gather("here") == ["here"]
    assert mesh.from_first("first") == "first"


@pytest.mark.parametrize(("size", "rows", "micro_batch"), [(1, 5, 2), (2, 5, 2), (4, 3, 1), (3, 7, 2)])
def test_an_evaluation_shares_its_rows_along_the_data_axis(size: int, rows: int, micro_batch: int) -> None:
    passes = [_passes(Axis(size, index, tuple(range(size)), None), rows, micro_batch) for index in range(size)]
    assert len({len(own) for own in passes}) == 1, "a pass may be a collective"
    assert sorted(row for own in passes for rows_of_pass in own for row in rows_of_pass) == list(range(rows))


def test_all_ranks_count_for_the_peak_and_data_parallel_ones_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks of a pair compute on the same tokens; ZeRO shards over those that hold the same weights."""
    peaks: list[float | None] = []
    monkeypatch.setattr(assemble, "peak_flops", lambda *_: 10.0)
    monkeypatch.setattr(assemble, "Throughput", lambda flops_per_token, peak_flops: peaks.append(peak_flops))
    recipe = recipe_of(stage=1)
    plan = make_plan(recipe, SMALL, World(size=4, gpu=False))
    assemble._meter(recipe, plan)
    assemble._meter(recipe, replace(plan, mesh=PAIRS))
    assemble._meter(recipe, replace(plan, mesh=data_mesh(2)))
    assert peaks == [40.0, 40.0, 20.0]
    shards = {ranks: estimate_memory(recipe, SMALL, data_mesh(ranks), micro_batch=1) for ranks in (2, 4)}
    pairs, halves = (
        estimate_memory(recipe, SMALL, MeshShape((("expert_data", 2), *inner)), micro_batch=1)
        for inner in ((("tensor", 2),), (("sequence", 2),))
    )
    # Both ranks of a pair have the embeddings.
    assert shards[4].optimizer_bytes < pairs.optimizer_bytes < shards[2].optimizer_bytes
    assert halves.optimizer_bytes == shards[4].optimizer_bytes
    assert shards[2].optimizer_bytes == 2 * shards[4].optimizer_bytes
