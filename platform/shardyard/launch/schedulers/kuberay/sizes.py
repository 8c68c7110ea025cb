"""How many pods a recipe needs under Kubernetes, and of what size. Pure arithmetic on the recipe and its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardyard.errors import Problem, RecipeError
from shardyard.planning.host_memory import GPUS_PER_NODE, gpus_of_node, host_memory
from shardyard.planning.plan import RunPlan
from shardyard.recipe.mesh import ranks_together
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes, parse_bytes

GIB = 1024**3
# The raylet and the agents of Ray.
NODE_BYTES = GIB
HEAD_CPUS = 2
# The driver of the run imports torch, and Ray's services grow with the number of nodes.
HEAD_BYTES = 6 * GIB

# How fast a pod writes its part of a checkpoint to shared storage at the least, and how long the step before it takes.
CHECKPOINT_BYTES_PER_SECOND = 200 * 10**6
LAST_STEP_SECONDS = 120
# Ray is stopped after the checkpoint, within this time.
STOP_SECONDS = 30


@dataclass(frozen=True)
class Pods:
    """The pods of a run's workers, all of one size; on each node one.

    count: pods; ranks: workers of each; cpus, gpus: of each pod.
    memory_bytes: of the container, /dev/shm included; base_bytes: what one rank takes of it.
    shared_bytes: of /dev/shm; object_store_bytes: what Ray may use of it.
    checkpoint_seconds: how long a pod that is to go may take for a last checkpoint.
    """

    count: int
    ranks: int
    cpus: int
    gpus: int
    memory_bytes: int
    object_store_bytes: int
    shared_bytes: int
    checkpoint_seconds: int
    reasons: dict[str, str]

    @property
    def grace_seconds(self) -> int:
        """How long a pod may take to end: its last checkpoint, then Ray."""
        return self.checkpoint_seconds + STOP_SECONDS


def pods_of(recipe: Recipe, plan: RunPlan) -> Pods:
    """The pods that hold all ranks.

    Raises:
        RecipeError: the ranks do not fill pods of one size.
    """
    settings = recipe.cluster.kubernetes
    ranks, why = ranks_per_pod(recipe, plan)
    memory, why_memory = _memory_bytes(recipe, plan, ranks)
    object_store = parse_bytes(settings.object_store_memory)
    shared = parse_bytes(settings.shared_memory) if settings.shared_memory else object_store
    if shared < object_store:
        raise _refuse(
            "cluster.kubernetes.shared_memory",
            f"{settings.shared_memory} is less than cluster.kubernetes.object_store_memory "
            f"({settings.object_store_memory}), which lies in it; raise it or lower the other",
        )
    return Pods(
        count=plan.world.size // ranks,
        ranks=ranks,
        cpus=ranks * recipe.cluster.cpus_per_worker,
        gpus=gpus_of_node(gpus_per_rank(recipe, plan), ranks),
        memory_bytes=_rounded_up_gib(memory + shared + NODE_BYTES),
        object_store_bytes=object_store,
        shared_bytes=shared,
        checkpoint_seconds=_checkpoint_seconds(plan, ranks),
        reasons={
            "pods": f"{plan.world.size} rank(s), {ranks} a pod: {why}",
            "memory": f"{why_memory}; {format_bytes(shared)} of /dev/shm; {format_bytes(NODE_BYTES)} for Ray",
        },
    )


def ranks_per_pod(recipe: Recipe, plan: RunPlan) -> tuple[int, str]:
    """How many ranks share a pod, and why.

    Raises:
        RecipeError: pods of one size cannot hold the ranks as the recipe wants them.
    """
    settings, workers, group = recipe.cluster, plan.world.size, ranks_together(recipe)
    if settings.workers_per_node is not None:
        return _checked_ranks(settings.workers_per_node, workers, group), "cluster.workers_per_node"
    if settings.placement == "strict_spread":
        return _checked_ranks(1, workers, group), "cluster.placement is strict_spread"
    if settings.placement == "strict_pack":
        return workers, "cluster.placement is strict_pack"
    if not gpus_per_rank(recipe, plan) or workers <= GPUS_PER_NODE:
        return workers, "they fit one node"
    fitting = [n for n in range(group, max(group, GPUS_PER_NODE) + 1, group) if workers % n == 0]
    return max(fitting), f"a node has {GPUS_PER_NODE} GPUs"


def _checked_ranks(wanted: int, workers: int, group: int) -> int:
    if workers % wanted == 0 and wanted % group == 0:
        return wanted
    what = f"groups of {group} ranks that share experts" if wanted % group else f"the {workers} ranks"
    fitting = ", ".join(str(n) for n in range(group, workers + 1, group) if workers % n == 0)
    raise _refuse(
        "cluster.workers_per_node",
        f"pods with {wanted} rank(s) each do not hold {what}, and pods are all of one size; set it to one of {fitting}",
    )


def gpus_per_rank(recipe: Recipe, plan: RunPlan) -> float:
    """GPUs of one rank: 1, 0, or a fraction."""
    given = recipe.cluster.gpus_per_worker
    return float(plan.world.gpu) if given is None else given


def head_bytes(pods: Pods) -> int:
    """Memory of the head's container. Of /dev/shm it needs what Ray uses and no more: no rank runs there."""
    return HEAD_BYTES + pods.object_store_bytes


def _memory_bytes(recipe: Recipe, plan: RunPlan, ranks: int) -> tuple[int, str]:
    """Memory of the host that the ranks of a pod need, and what for."""
    given = recipe.cluster.kubernetes.memory_per_worker
    if given is not None:
        return ranks * parse_bytes(given), f"{ranks} × {given} (cluster.kubernetes.memory_per_worker)"
    return host_memory(recipe, plan, ranks, gpu=gpus_per_rank(recipe, plan) > 0)


def _checkpoint_seconds(plan: RunPlan, ranks: int) -> int:
    """In whole minutes."""
    memory = plan.memory
    states = memory.parameters_bytes + memory.optimizer_bytes + memory.offloaded_bytes
    return 60 * math.ceil((LAST_STEP_SECONDS + ranks * states / CHECKPOINT_BYTES_PER_SECOND) / 60)


def _rounded_up_gib(count: float) -> int:
    return math.ceil(count / GIB) * GIB


def _refuse(path: str, message: str) -> RecipeError:
    return RecipeError("kuberay", [Problem("", path, message)])
