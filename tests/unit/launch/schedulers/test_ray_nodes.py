"""The nodes of a Ray cluster, from what its dashboard answers."""

from __future__ import annotations

from typing import Any

from shardyard.launch.schedulers.base import GpuLoad
from shardyard.launch.schedulers.ray.nodes import DEAD_SECONDS, described
from shardyard.planning.placement import Amount

NOW = 1_000_000.0
HEAD = {
    "node_id": "a" * 56,
    "node_ip": "10.0.0.1",
    "node_name": "10.0.0.1",
    "is_head_node": True,
    "state": "ALIVE",
    "resources_total": {"CPU": 16.0, "GPU": 2.0, "memory": 64.0},
}
WORKER = {**HEAD, "node_id": "b" * 56, "node_ip": "10.0.0.2", "node_name": "rack-2", "is_head_node": False}
MACHINE = {
    "hostname": "gpu-host",
    "cpu": 12.5,
    "mem": [100, 40, 60.0, 60],
    "raylet": {"nodeId": "a" * 56},
    "gpus": [
        {"index": 0, "name": "H100", "uuid": "x", "utilizationGpu": 97, "memoryUsed": 1024, "memoryTotal": 81920},
        {"index": 1, "name": "H100", "uuid": "y", "utilizationGpu": None, "memoryUsed": 0, "memoryTotal": 81920},
    ],
}


def dead(seconds_ago: float) -> dict[str, Any]:
    return {
        **WORKER,
        "node_id": "c" * 56,
        "state": "DEAD",
        "state_message": "the health check failed",
        "end_time_ms": 1000 * (NOW - seconds_ago),
    }


def test_what_is_reserved_and_how_busy_the_machine_is() -> None:
    head, worker = described([WORKER, HEAD], {"a" * 56: {"CPU": [4.0, 16.0], "GPU": [2.0, 2.0]}}, [MACHINE], NOW)
    assert (head.name, head.address, head.head, head.up) == ("gpu-host", "10.0.0.1", True, True)
    assert (head.total, head.free) == (Amount(16.0, 2.0), Amount(12.0, 0.0))
    assert (head.cpu_percent, head.memory) == (12.5, (60, 100))
    assert [gpu.percent for gpu in head.gpus] == [97, None]
    assert head.gpus[0] == GpuLoad("H100", 97, (1 << 30, 80 << 30))
    # Nothing is known of the other but that it is there.
    assert (worker.name, worker.free, worker.cpu_percent, worker.gpus) == ("rack-2", None, None, ())


def test_a_node_that_died_is_told_of_for_a_while() -> None:
    found = described([HEAD, dead(60)], {"c" * 56: {"CPU": [1.0, 16.0]}}, [], NOW)
    assert [node.up for node in found] == [True, False]
    assert (found[1].problem, found[1].total, found[1].free) == ("the health check failed", Amount(0.0), None)
    assert len(described([HEAD, dead(DEAD_SECONDS + 1)], {}, [], NOW)) == 1


def test_answers_of_another_shape_cost_only_what_they_would_say() -> None:
    odd = {"raylet": {"nodeId": "a" * 56}, "cpu": "much", "mem": None, "gpus": [{"name": "H100"}, None]}
    (head,) = described([HEAD], {"a" * 56: {"CPU": "all"}}, [None, "machine", {}, odd], NOW)
    assert head.free is None
    assert (head.cpu_percent, head.memory, head.gpus) == (None, None, ())
