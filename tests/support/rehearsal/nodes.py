"""A script run with eight simulated GPUs: sixteen ranks on two Ray nodes, reported as JSON on the last line."""

from __future__ import annotations

import json
from typing import Any

import ray
from ray.cluster_utils import Cluster as TwoNodes
from ray.util import placement_group_table

from shardyard.errors import HardwareError
from shardyard.launch.ray.cluster import cluster_gpus, ray_cluster
from shardyard.launch.ray.worker_group import reserve
from shardyard.launch.run.settle import bf16_of_nodes
from shardyard.launch.run.world import world_of
from shardyard.planning.placement import ask, judge
from shardyard.recipe.schema import Cluster


def told(settings: Cluster) -> dict[str, Any]:
    """The placement of all ranks' bundles by Ray, and the message for one rank too many."""
    gpus = cluster_gpus(settings)
    world = world_of(settings, cluster_gpus=gpus)
    demand = ask(settings, gpu=world.gpu)
    with ray_cluster(settings, gpu=world.gpu) as cluster:
        verdict = judge(demand, cluster.nodes())
        assert verdict.now is not None, verdict.sentence
        group = reserve(demand, verdict.now)
        assert group.wait(60), "Ray does not place what it was said to have room for"
        bf16 = bf16_of_nodes([node.id for node in cluster.nodes()], gpu=True)
        lies = placement_group_table(group)["bundles_to_node_id"]
        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
        found = {
            "gpus": gpus,
            "sentence": verdict.sentence,
            "bundle": group.bundle_specs[0],
            "counts": [count for _, count in verdict.now.ranks],
            "as told": [lies[index] for index in range(settings.workers)] == verdict.now.node_of_rank,
            "nodes": len(names),
            "bf16": [bf16.units, bf16.why],
        }
        ray.util.remove_placement_group(group)
    return found


def refused(settings: Cluster) -> str:
    """The message for more ranks than there can ever be GPUs."""
    try:
        with ray_cluster(settings, gpu=True):
            return ""
    except HardwareError as error:
        return str(error)


def main() -> None:
    """Run two nodes, like two hosts."""
    nodes = TwoNodes(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 8, "include_dashboard": False})
    nodes.add_node(num_cpus=8, num_gpus=8)
    address = nodes.address
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
        answer: dict[str, Any] = told(Cluster(workers=16, address=address))
        ray.init(address=address, log_to_driver=False, configure_logging=False)
        answer["refused"] = refused(Cluster(workers=17, address=address))
    finally:
        ray.shutdown()
        nodes.shutdown()
    print(json.dumps(answer))  # noqa: T201


if __name__ == "__main__":
    main()
