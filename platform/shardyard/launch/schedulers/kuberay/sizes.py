"""The number and size of pods that a recipe needs under Kubernetes. Pure arithmetic on the recipe and its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardyard.errors import Problem, RecipeError
from shardyard.planning.host_memory import GPUS_PER_NODE, gpus_of_node, host_memory
from shardyard.planning.plan import RunPlan
from shardyard.planning.readers import cpus_of
from shardyard.recipe.mesh import ranks_together
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes, parse_bytes

GIB = 1024**3
# The raylet and the agents of Ray.
NODE_BYTES = GIB
HEAD_CPUS = 2
# The driver of the run imports torch, and Ray's services grow with the number of nodes.
HEAD_BYTES = 6 * GIB

# The minimum speed at which a pod writes its part of a checkpoint, and the time of the step before it.
CHECKPOINT_BYTES_PER_SECOND = 200 * 10**6
LAST_STEP_SECONDS = 120
# The time to stop Ray after the checkpoint.
STOP_SECONDS = 30


@dataclass(frozen=True)
class Pods:
    """The pods of a run's workers, all of the same size, one per node.

    count: pods; ranks: workers of each; cpus, gpus: of each pod.
    memory_bytes: of the container, including /dev/shm; base_bytes: the part of one rank.
    shared_bytes: of /dev/shm; object_store_bytes: the part that Ray may use.
    checkpoint_seconds: the time that a stopped pod has for a last checkpoint.
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
        """The grace period of a pod: for its last checkpoint, then for stopping Ray."""
        return self.checkpoint_seconds + STOP_SECONDS


def pods_of(recipe: Recipe, plan: RunPlan) -> Pods:
    """The pods that hold all ranks.

    Raises:
        RecipeError: the ranks do not fill pods of equal size.
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
        cpus=ranks * cpus_of(recipe, gpu=gpus_per_rank(recipe, plan) > 0)[0],
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
        RecipeError: the ranks do not divide into pods of equal size as required.
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
    what = f"groups of {group} ranks that share layers" if wanted % group else f"the {workers} ranks"
    fitting = ", ".join(str(n) for n in range(group, workers + 1, group) if workers % n == 0)
    raise _refuse(
        "cluster.workers_per_node",
        f"pods with {wanted} rank(s) each cannot hold {what} in pods of one size; set it to one of {fitting}",
    )


def gpus_per_rank(recipe: Recipe, plan: RunPlan) -> float:
    """GPUs of one rank: 1, 0, or a fraction."""
    given = recipe.cluster.gpus_per_worker
    return float(plan.world.gpu) if given is None else given


def head_bytes(pods: Pods) -> int:
    """Memory of the head's container. It needs /dev/shm only for Ray, because no rank runs there."""
    return HEAD_BYTES + pods.object_store_bytes


def _memory_bytes(recipe: Recipe, plan: RunPlan, ranks: int) -> tuple[int, str]:
    """Host memory that the ranks of a pod need, and why."""
    given = recipe.cluster.kubernetes.memory_per_worker
    if given is not None:
        return ranks * parse_bytes(given), f"{ranks} × {given} (cluster.kubernetes.memory_per_worker)"
    return host_memory(recipe, plan, ranks, gpu=gpus_per_rank(recipe, plan) > 0)


def _checkpoint_seconds(plan: RunPlan, ranks: int) -> int:
    """Time to write the ranks' last checkpoint, in whole minutes."""
    memory = plan.memory
    states = memory.parameters_bytes + memory.optimizer_bytes + memory.offloaded_bytes + memory.swapped_bytes
    return 60 * math.ceil((LAST_STEP_SECONDS + ranks * states / CHECKPOINT_BYTES_PER_SECOND) / 60)


def _rounded_up_gib(count: float) -> int:
    return math.ceil(count / GIB) * GIB


def _refuse(path: str, message: str) -> RecipeError:
    return RecipeError("kuberay", [Problem("", path, message)])
