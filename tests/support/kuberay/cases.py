"""Jobs whose manifests tests render: on CPUs, on many GPU nodes, and with all options of a recipe."""

from __future__ import annotations

import functools
from typing import Any

from shardyard.launch.schedulers.kuberay.names import dns_name
from shardyard.launch.schedulers.kuberay.render import RayJobInputs
from shardyard.planning.architecture import Architecture
from shardyard.planning.plan import RunPlan, World, make_plan
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe

CLAIM = "cluster.kubernetes.runs_claim=shardyard-runs"
JOB_FILE = '{\n "run_id": "given by the test"\n}'
SMALL = Architecture(
    family="gpt2",
    parameters=859_136,
    matmul_parameters=825_344,
    largest_block_parameters=198_272,
    layers=4,
    hidden_size=128,
    heads=4,
    vocabulary=264,
    positions=256,
)
LLAMA2_7B = Architecture(
    family="llama",
    parameters=6_738_415_616,
    matmul_parameters=6_607_343_616,
    largest_block_parameters=202_383_360,
    layers=32,
    hidden_size=4096,
    heads=32,
    vocabulary=32000,
    positions=4096,
)

# Name of the golden file → recipe, overrides, run id.
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "cpu": ("gpt/quickstart", (CLAIM,), "gpt-quickstart-20260102-030405-0a1b"),
    "gpu-nodes": (
        "gpt/llama2-7b",
        (CLAIM, "cluster.kubernetes.image=registry.example/shardyard:1.0", "cluster.cpus_per_worker=12"),
        "llama2-7b-20260102-030405-0a1b",
    ),
    "everything": (
        "gpt/llama2-7b",
        (
            CLAIM,
            "name=Llama_2.7B-on-Every.Option",
            "tracking.tags=[ablation, Long context]",
            "cluster.workers_per_node=4",
            "cluster.placement=spread",
            "cluster.kubernetes.namespace=research",
            "cluster.kubernetes.image=registry.example/shardyard:1.0",
            "cluster.kubernetes.service_account=trainer",
            "cluster.kubernetes.queue=research-queue",
            "cluster.kubernetes.memory_per_worker=100GiB",
            "cluster.kubernetes.shared_memory=64GiB",
            "cluster.kubernetes.object_store_memory=30GB",
            "cluster.kubernetes.rdma_resource=rdma/hca",
            "cluster.kubernetes.node_selector={node.example/gpu: h100, on: yes}",
            "cluster.kubernetes.secrets=[wandb, hugging-face]",
            "cluster.kubernetes.ttl_seconds=600",
            "job.priority=high",
            "job.time_limit=2d",
            "job.retries=5",
        ),
        "Llama_2.7B-on-Every.Option-20260102-030405-0a1b",
    ),
}


@functools.cache
def recipe_and_plan(name: str, *overrides: str) -> tuple[Recipe, RunPlan]:
    """A recipe and its plan, without torch: the sizes of its model are given above."""
    recipe = load_recipe(name, overrides).recipe
    world = World(size=recipe.cluster.workers, gpu=bool(recipe.cluster.gpus_per_worker))
    return recipe, make_plan(recipe, LLAMA2_7B if recipe.model.family == "llama" else SMALL, world)


def spec(name: str, *overrides: str, run_id: str = "run-1") -> RayJobInputs:
    """A job of a recipe."""
    return RayJobInputs(dns_name(run_id), run_id, *recipe_and_plan(name, *overrides), JOB_FILE)


def case(name: str) -> RayJobInputs:
    """One of `CASES`."""
    recipe, overrides, run_id = CASES[name]
    return spec(recipe, *overrides, run_id=run_id)


def pod_templates(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Head, workers and, of a RayJob, submitter."""
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    found = {"head": cluster["headGroupSpec"]["template"], "workers": cluster["workerGroupSpecs"][0]["template"]}
    if "submitterPodTemplate" in manifest["spec"]:
        found["submitter"] = manifest["spec"]["submitterPodTemplate"]
    return found
