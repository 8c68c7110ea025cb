"""What a cluster offers to a run, and what it could never hold."""

from __future__ import annotations

import pytest

from shardyard.errors import UsageError
from shardyard.launch.schedulers.base import Capacity
from shardyard.launch.schedulers.fit import refuse_what_never_fits, world_on
from shardyard.launch.schedulers.ray.jobs import amount_of
from shardyard.planning.placement import Amount, Node
from shardyard.recipe.loading.load import load_recipe


def _node(name: str, cpus: float, gpus: float = 0.0) -> Node:
    return Node(name, Amount(cpus, gpus), Amount(cpus, gpus))


def _has(*nodes: Node, grows: bool = False) -> Capacity:
    return Capacity(nodes, grows)


def test_what_a_cluster_could_never_hold_is_refused_in_numbers() -> None:
    recipe = load_recipe("gpt/quickstart", ["cluster.workers=4", "cluster.gpus_per_worker=0"]).recipe
    nodes = (_node("a", 2), _node("b", 1))
    with pytest.raises(UsageError, match="needs 4 CPU cores; 3 in the cluster at http://head"):
        refuse_what_never_fits(recipe, gpu=False, capacity=_has(*nodes), where="http://head")
    refuse_what_never_fits(recipe, gpu=False, capacity=_has(*nodes, _node("c", 1)), where="http://head")
    refuse_what_never_fits(recipe, gpu=False, capacity=_has(*nodes, grows=True), where="http://head")
    refuse_what_never_fits(recipe, gpu=False, capacity=Capacity(None), where="http://head")
    apart = load_recipe("gpt/quickstart", ["cluster.workers=2", "cluster.placement=strict_spread"]).recipe
    with pytest.raises(UsageError, match="on 2 nodes"):
        refuse_what_never_fits(apart, gpu=False, capacity=_has(_node("a", 8)), where="http://head")


def test_the_world_follows_the_cluster_and_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    recipe = load_recipe("gpt/quickstart", []).recipe
    assert world_on(recipe, _has(_node("a", 8, 4))).gpu is True
    assert world_on(recipe, _has(_node("a", 8))).gpu is False
    assert world_on(recipe, _has(_node("a", 8))).device_bytes is None
    assert world_on(recipe, None).gpu is False
    none = load_recipe("gpt/quickstart", ["cluster.gpus_per_worker=0"]).recipe
    assert world_on(none, _has(_node("a", 8, 4))).gpu is False


def test_resources_as_ray_lists_them() -> None:
    found = amount_of({"CPU": 2.0, "memory": "4.000 GiB", "node:__internal_head__": 1.0})
    assert found == Amount(cpus=2.0, gpus=0.0, memory=4 * 1024**3)
    assert amount_of({"CPU": 1.0, "GPU": 0.5, "memory": 1024.0}) == Amount(1.0, 0.5, 1024.0)
