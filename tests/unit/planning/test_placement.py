"""Where workers go: never over a node's room, never through a group, and said in words that hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardyard.planning.placement import Amount, Demand, Node, Strategy, demand_of, judge, place, room
from shardyard.recipe.schema import Recipe

# Slow machines are no failure.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
STRATEGIES: list[Strategy] = ["pack", "spread", "strict_pack", "strict_spread"]


def node(name: str, cpus: float, gpus: float = 0, *, free: Amount | None = None, memory: float = 2.0**40) -> Node:
    total = Amount(cpus, gpus, memory)
    return Node(name, total, free or total)


def demand(workers: int, **fields: Any) -> Demand:
    values: dict[str, Any] = {"bundle": Amount(1.0), "group": 1, "strategy": "pack", "most_per_node": None, **fields}
    return Demand(workers=workers, **values)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    group = draw(st.sampled_from([1, 1, 2, 4]))
    strategy = draw(st.sampled_from([s for s in STRATEGIES if group == 1 or s != "strict_spread"]))
    most = draw(st.sampled_from([None, group, 2 * group]))
    gpus = draw(st.sampled_from([0.0, 0.25, 0.4, 1.0]))
    return Demand(
        workers=group * draw(st.integers(1, 6)),
        bundle=Amount(draw(st.sampled_from([1.0, 3.0])), gpus, draw(st.sampled_from([0.0, 2.0**30]))),
        group=group,
        strategy=strategy,
        most_per_node=most,
    )


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    def one(index: int) -> Node:
        total = Amount(draw(st.integers(0, 12)), draw(st.integers(0, 8)), draw(st.integers(0, 8)) * 2.0**30)
        free = Amount(*(draw(st.integers(0, int(have))) for have in (total.cpus, total.gpus)), total.memory)
        return Node(f"node-{index}", total, free)

    return [one(index) for index in range(draw(st.integers(0, 5)))]


@relaxed
@given(demands(), clusters())
def test_no_node_is_over_filled_and_no_group_is_split(asked: Demand, nodes: list[Node]) -> None:
    found = place(asked, nodes)
    if found is None:
        return
    free = {one.id: one.free for one in nodes}
    assert sum(count for _, count in found.ranks) == asked.workers
    assert len({name for name, _ in found.ranks}) == len(found.ranks)
    for name, count in found.ranks:
        assert count > 0
        assert count * asked.bundle.cpus <= free[name].cpus
        assert count * asked.bundle.gpus <= free[name].gpus + 1e-6
        assert count * asked.bundle.memory <= free[name].memory
        assert asked.most_per_node is None or count <= asked.most_per_node
        assert asked.strategy != "strict_spread" or count == 1
    assert asked.strategy != "strict_pack" or len(found.ranks) == 1
    where = found.node_of_rank
    for start in range(0, asked.workers, asked.group):
        assert len(set(where[start : start + asked.group])) == 1


@relaxed
@given(demands(), clusters())
def test_a_run_is_placed_whenever_there_is_room(asked: Demand, nodes: list[Node]) -> None:
    rooms = [room(asked, one.free) for one in nodes]
    fits = max(rooms, default=0) >= asked.workers if asked.strategy == "strict_pack" else sum(rooms) >= asked.workers
    assert (place(asked, nodes) is not None) == fits


@relaxed
@given(demands(), clusters())
def test_what_fits_now_fits_ever(asked: Demand, nodes: list[Node]) -> None:
    verdict = judge(asked, nodes)
    assert verdict.ever or verdict.now is None
    assert verdict.sentence.startswith("needs ")
    assert ("free" in verdict.sentence) == (verdict.now is None and verdict.ever)
    assert ("in the cluster" in verdict.sentence) == (not verdict.ever)


@relaxed
@given(demands(), clusters())
def test_packing_takes_as_few_nodes_as_there_can_be(asked: Demand, nodes: list[Node]) -> None:
    found = place(asked, nodes)
    if found is None or asked.strategy != "pack" or not asked.bundle.gpus:
        return
    rooms = sorted((room(asked, one.free) for one in nodes), reverse=True)
    least = next(count for count in range(len(rooms) + 1) if sum(rooms[:count]) >= asked.workers)
    assert len(found.ranks) == least


@relaxed
@given(demands(), clusters())
def test_spreading_is_even_where_nodes_have_room(asked: Demand, nodes: list[Node]) -> None:
    found = place(asked, nodes)
    if found is None or asked.strategy != "spread":
        return
    counts = dict(found.ranks)
    rooms = {one.id: room(asked, one.free) for one in nodes}
    fullest = max(counts.values())
    for name, ranks in rooms.items():
        assert counts.get(name, 0) >= min(ranks, fullest - asked.group)


def test_neighbours_share_a_node() -> None:
    gpu = Amount(1.0, 1.0)
    nodes = [node("a", 8, 4), node("b", 8, 4)]
    assert place(demand(8, bundle=gpu), nodes).node_of_rank == ["a"] * 4 + ["b"] * 4  # type: ignore[union-attr]
    # Six of eight free GPUs would hold six ranks, but a group of four cannot go through two nodes.
    busy = [node("a", 8, 4, free=Amount(8, 3)), node("b", 8, 4)]
    assert place(demand(4, bundle=gpu, group=4), busy).ranks == (("b", 4),)  # type: ignore[union-attr]
    assert place(demand(8, bundle=gpu, group=4), busy) is None


def test_the_last_ranks_leave_large_nodes_free() -> None:
    nodes = [node("large", 16), node("small", 2), node("middle", 4)]
    assert place(demand(2), nodes).ranks == (("small", 2),)  # type: ignore[union-attr]
    assert dict(place(demand(18), nodes).ranks) == {"large": 16, "small": 2}  # type: ignore[union-attr]


def test_cpu_ranks_leave_gpus_to_others() -> None:
    nodes = [node("gpus", 64, 8), node("plain", 4)]
    assert place(demand(4), nodes).ranks == (("plain", 4),)  # type: ignore[union-attr]
    assert place(demand(8), nodes).ranks == (("gpus", 8),)  # type: ignore[union-attr]


def test_a_worker_does_not_lie_over_two_gpus() -> None:
    assert room(demand(9, bundle=Amount(0.5, 0.4)), Amount(64, 2)) == 4
    assert room(demand(9, bundle=Amount(0.5, 0.1)), Amount(64, 1)) == 10


@pytest.mark.parametrize(
    ("asked", "nodes", "sentence"),
    [
        (
            demand(8, bundle=Amount(1.0, 1.0)),
            [node("a", 8, 4, free=Amount(8, 4)), node("b", 8, 4, free=Amount(8, 0))],
            "needs 8 GPUs on 2 nodes; 4 free",
        ),
        (demand(2), [node("a", 2, free=Amount(1))], "needs 2 CPU cores on 1 node; 1 free"),
        (demand(4), [node("a", 2)], "needs 4 CPU cores; 2 in the cluster"),
        (
            demand(1, bundle=Amount(1, 0, 2.0**31)),
            [node("a", 2, memory=0)],
            "needs 2.0 GiB of memory; 0 B in the cluster",
        ),
        (
            demand(4, bundle=Amount(8.0, 1.0)),
            [node("a", 8, 4)],
            "needs 32 CPU cores; 8 in the cluster",
        ),
        (
            demand(8, bundle=Amount(1.0, 1.0), group=8),
            [node("a", 8, 4), node("b", 8, 4)],
            (
                "needs 8 GPUs; 8 in the cluster, but they hold 0 of 8 workers, 8 that share layers on one node "
                "(parallel)"
            ),
        ),
        (
            demand(2, strategy="strict_spread"),
            [node("a", 8)],
            "needs 2 CPU cores on 2 nodes; 8 in the cluster, but they hold 1 of 2 workers, one a node",
        ),
        (
            demand(4, strategy="strict_pack"),
            [node("a", 2), node("b", 3)],
            (
                "needs 4 CPU cores on 1 node; 5 in the cluster, but they hold 3 of 4 workers on one node, as "
                "cluster.placement strict_pack asks"
            ),
        ),
        (
            demand(2, bundle=Amount(4.0)),
            [node("a", 6), node("b", 2)],
            "needs 8 CPU cores; 8 in the cluster, but they hold 1 of 2 workers, each with 4 CPU cores",
        ),
        (demand(2), [node("a", 2)], "needs 2 CPU cores on 1 node"),
    ],
)
def test_what_is_lacking_is_said(asked: Demand, nodes: list[Node], sentence: str) -> None:
    assert judge(asked, nodes).sentence == sentence


def test_a_recipe_becomes_a_demand() -> None:
    fields: dict[str, Any] = {
        "name": "placed",
        "model": {"family": "gpt2"},
        "data": {"sequence_length": 8, "train": [{"source": "python-docs"}]},
        "train": {"steps": 1, "global_batch": 8},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }

    def asked(gpu: bool = False, **cluster: Any) -> Demand:
        return demand_of(Recipe.model_validate({**fields, "cluster": cluster}), gpu=gpu)

    assert asked(workers=2, cpus_per_worker=1) == demand(2)
    assert asked(workers=2) == replace(demand(2), cpus_given=False)
    # A core for training, and one for the reader of bytes.
    assert asked(workers=2, gpu=True).bundle == Amount(2.0, 1.0)
    assert asked(workers=2, gpu=True, cpus_per_worker=1).bundle == Amount(1.0, 1.0)
    assert asked(gpus_per_worker=0.25).bundle == Amount(1.0, 0.25)
    assert asked(workers=2, workers_per_node=1).strategy == "strict_spread"
    assert asked(workers=4, workers_per_node=2, cpus_per_worker=1) == demand(4, most_per_node=2)
    assert asked(memory_per_worker="1GiB").bundle.memory == 2.0**30
    # On a GPU the memory is the GPU's, which Ray does not count.
    assert asked(gpu=True, memory_per_worker="80GiB").bundle.memory == 0
