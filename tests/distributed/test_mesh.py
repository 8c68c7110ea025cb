"""The mesh on four real ranks: groups reduce over what they say, and ranks that share rows change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardyard.engine.assemble import assemble
from shardyard.engine.deepspeed.batch_norm import RunningStatistics
from shardyard.engine.hooks.evaluate import EvaluateHook
from shardyard.engine.job import Job
from shardyard.engine.mesh import AXES, Axis, Mesh, make_mesh
from shardyard.engine.step import train_step
from shardyard.engine.sums import Sums, sum_over_ranks
from shardyard.engine.world import Rank
from shardyard.launch.run.prepare import prepare
from shardyard.objectives.base import Measured
from shardyard.objectives.contrastive.gathering import gather_rows
from shardyard.planning.plan import World
from shardyard.recipe.mesh import MeshShape, data_mesh
from shardyard.tracking.metrics.record import StepRecord
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

# The ranks of a pair read the same rows; here nothing splits a model along the axis.
PAIRS = MeshShape((("expert_data", 2), ("expert", 1), ("tensor", 2)))
SHAPES = {
    "data alone": data_mesh(4),
    "experts": MeshShape((("expert_data", 2), ("expert", 2))),
    "pairs": PAIRS,
    "experts and pairs": MeshShape((("expert_data", 1), ("expert", 2), ("tensor", 2))),
    "sequences": MeshShape((("expert_data", 2), ("expert", 1), ("sequence", 2))),
    "sequences of pairs": MeshShape((("expert_data", 1), ("expert", 1), ("sequence", 2), ("tensor", 2))),
}
STEPS = 5
# A hook from outside that sums along an axis.
HOOK = """
import torch

from shardyard.engine.hooks.base import Hook


class Places(Hook):
    name = "places"

    def __init__(self, inputs) -> None:
        super().__init__()
        self.mesh = inputs.mesh
        assert inputs.rank is inputs.mesh.here

    def on_step(self, record) -> None:
        places = torch.tensor(1.0 + self.mesh.data.index)
        self.mesh.data.sum(places)
        record.add({"test/places": float(places)})
"""


def on_each_mesh(rank: Rank) -> dict[str, dict[str, Any]]:
    return {name: _seen(make_mesh(shape, rank)) for name, shape in SHAPES.items()}


def _seen(mesh: Mesh) -> dict[str, Any]:
    """What collectives along each axis give, and what the engine sums over ranks."""
    own = Sums(mesh.device)
    own.add(Measured({"loss": torch.tensor(10.0**mesh.rank)}, {"table": torch.full((2, 2), 10.0**mesh.rank)}))
    totals, flags, _ = own.over_ranks(mesh, [float(mesh.is_first)]).to_host({"loss": 1.0})
    rows = torch.full((1, 2), float(mesh.rank), requires_grad=True)
    gathered, first = gather_rows(rows, mesh.data.group)
    (gathered[:, 0] * 10.0**mesh.rank).sum().backward()
    assert rows.grad is not None
    layer = nn.BatchNorm1d(1)
    assert layer.running_mean is not None
    layer.running_mean.fill_(mesh.rank)
    RunningStatistics(layer, mesh.data).average()
    return {
        **{name: _talk(getattr(mesh, name), mesh.rank) for name in AXES},
        "first": mesh.from_first(f"rank {mesh.rank}"),
        "sums": (totals.losses["loss"], float(totals.observed["table"][1, 1]), *sum_over_ranks([mesh.rank], mesh)),
        "flags": flags,
        "rows": (gathered[:, 0].tolist(), first, float(rows.grad[0, 0])),
        "statistics": float(layer.running_mean),
    }


def _talk(axis: Axis, rank: int) -> tuple[tuple[int, ...], int, list[int], float, float]:
    """The group as the mesh has it, and as collectives find it: numbers of ranks, and sums of a power of ten each."""
    summed, started = torch.tensor(10.0**rank), torch.tensor(10.0**rank)
    axis.sum(summed)
    work = axis.start_sum(started)
    if work is not None:
        work.wait()
    return axis.ranks, axis.index, axis.gather(rank), float(summed), float(started)


def test_groups_reduce_over_what_they_say() -> None:
    by_rank = run_ranks(4, on_each_mesh)
    for name, shape in SHAPES.items():
        for rank, seen in enumerate(found[name] for found in by_rank):
            for axis in AXES:
                ranks = shape.ranks(axis, rank)
                powers = sum(10.0**other for other in ranks)
                assert seen[axis] == (ranks, shape.index(axis, rank), list(ranks), powers, powers), (name, axis, rank)
            data = shape.ranks("data", rank)
            powers = sum(10.0**other for other in data)
            # Ranks of a sequence compute different tokens.
            adding = shape.ranks("zero", rank)
            summed = sum(10.0**other for other in adding)
            assert seen["sums"] == (summed, summed, sum(adding))
            # Whatever the axes are, all ranks hear what rank 0 has to say.
            assert (seen["first"], seen["flags"]) == ("rank 0", [1.0])
            assert seen["rows"] == ([float(other) for other in data], data.index(rank), powers)
            assert seen["statistics"] == sum(data) / len(data)


def refused(rank: Rank) -> str:
    with pytest.raises(AssertionError) as error:
        make_mesh(data_mesh(3), rank)
    return str(error.value)


def test_a_plan_for_another_number_of_ranks_is_not_carried_out() -> None:
    assert run_ranks(1, refused) == ["a plan for 3 ranks is carried out by 1"]


def trained(rank: Rank, job: Job) -> dict[str, Any]:
    """The first steps: rows read, losses, gradient norms, an evaluation, and the streams' states at the end."""
    session = assemble(job.recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    rows, losses = [], []
    for _ in range(STEPS):
        session.learning_rate.set(1.0)
        batch = session.next_batch()
        rows.append(batch["input_ids"].tolist())
        result = train_step(session.engine, session.objective, batch, session.mesh)
        losses.append((result.loss, result.grad_norm, result.totals.counts["loss"]))
    record = StepRecord(STEPS, {})
    for hook in session.hooks:
        if isinstance(hook, EvaluateHook) or hook.name == "places":
            hook.on_step(record)
    session.close()
    return {"rows": rows, "losses": losses, "metrics": record.metrics, "streams": session.streams, "drawn": _drawn()}


def _drawn() -> float:
    return float(torch.rand(()))


def test_ranks_that_share_rows_change_nothing_of_what_is_trained(tmp_path: Path) -> None:
    """Four ranks in pairs against two: the same rows for each data-parallel rank, and the same losses and gradients."""
    (tmp_path / "places.py").write_text(HOOK)
    recipe = tiny_recipe(
        write_corpus(tmp_path),
        model={"dropout": 0.1},
        train={"gradient_clipping": 1.0},
        cluster={"workers": 2},
        hooks=[{"name": f"{tmp_path / 'places.py'}:Places"}],
    )
    two = tiny_job(recipe, tmp_path / "runs", world_size=2)
    plan = prepare(recipe, World(size=2, gpu=False))
    four = replace(
        tiny_job(recipe, tmp_path / "runs", world_size=4),
        plan=replace(plan, world=World(size=4, gpu=False), mesh=PAIRS),
    )
    alone, paired = run_ranks(2, trained, two), run_ranks(4, trained, four)
    assert alone[0]["rows"] != alone[1]["rows"]
    assert alone[0]["metrics"]["test/places"] == 1 + 2
    for rank, found in enumerate(paired):
        reader = alone[PAIRS.index("data", rank)]
        assert found["rows"] == reader["rows"]
        assert found["streams"] == reader["streams"]
        # Dropout's generator stands where that of the data-parallel rank stands.
        assert found["drawn"] == reader["drawn"]
        for ours, reference in zip(found["losses"], reader["losses"], strict=True):
            assert ours == pytest.approx(reference, rel=1e-5)
        assert found["metrics"] == pytest.approx(reader["metrics"], rel=1e-5)
