"""Fixing the precision at start: the nodes are queried once, and the result is stored in the run folder."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shardyard.engine.job import Job
from shardyard.hardware import bf16_units, read_cpuinfo
from shardyard.launch.ray.cluster import RayCluster
from shardyard.launch.run.prepare import as_fixed
from shardyard.launch.run.world import bf16_of_gpus
from shardyard.planning.placement import Demand, Placement
from shardyard.planning.plan import make_plan
from shardyard.planning.plan_text import as_dict, resolved_text
from shardyard.recipe.precision import GIVEN, Bf16, with_precision
from shardyard.recipe.schema import Precision
from shardyard.tracking.run.plan_file import keep_plan

# A node that does not answer within this time is assumed to have no bf16 units.
ASK_SECONDS = 60.0


@dataclass(frozen=True)
class NodeAnswer:
    """The answer of a node. cpu: its bf16 units, from `bf16_units`; gpu: the lowest compute capability."""

    host: str
    cpu: str | None = None
    gpu: tuple[int, int] | None = None


def settle(job: Job, cluster: RayCluster, demand: Demand, placement: Placement, report: Callable[[str], None]) -> Job:
    """The job with a precision that its nodes support, written to resolved.yaml and run.json.

    A run whose precision is already fixed keeps it, wherever its workers run now.
    """
    if job.recipe.train.precision is not None and job.recipe.train.minutes is None:
        return job
    recipe, world = as_fixed(job.recipe, job.folder), job.plan.world
    ask_now = recipe.train.precision is None
    if ask_now:
        world = replace(world, bf16=bf16_of_nodes(nodes_for(cluster, demand, placement), gpu=world.gpu))
    plan = make_plan(recipe, job.plan.architecture, world)
    recipe = with_precision(recipe, plan.precision)
    if ask_now:
        report_precision(plan.precision, plan.reasons["precision"], report)
        keep_plan(job.folder, resolved_text(recipe, plan), as_dict(plan))
    return replace(job, recipe=recipe, plan=plan)


def report_precision(precision: Precision, why: str, report: Callable[[str], None]) -> None:
    """Report the precision and the reason, unless the recipe sets one that suits the devices."""
    if why != GIVEN:
        report(f"precision {precision}: {why}")


def nodes_for(cluster: RayCluster, demand: Demand, placement: Placement) -> list[str]:
    """Ids of the nodes of the workers; if Ray still has to choose, of all nodes that could hold one."""
    if placement.ranks:
        return sorted(set(placement.node_of_rank))
    bundle = demand.bundle
    return [node.id for node in cluster.nodes() if node.total.cpus >= bundle.cpus and node.total.gpus >= bundle.gpus]


def bf16_of_nodes(nodes: Sequence[str], *, gpu: bool) -> Bf16:
    """Whether the devices of all nodes have bf16 units."""
    answers = ask(nodes, gpu=gpu)
    return bf16_of_gpu_nodes(answers) if gpu else bf16_of_cpu_nodes(answers)


def bf16_of_cpu_nodes(answers: Sequence[NodeAnswer]) -> Bf16:
    """bf16 only if all CPUs have units for it; one without would slow down all others."""
    for answer in answers:
        if answer.cpu is None:
            return Bf16(False, f"whether the CPU of {answer.host} has bf16 units is not known")
        if not answer.cpu:
            return Bf16(False, f"the CPU of {answer.host} has no bf16 units")
    if not answers:
        return Bf16(False, "no node reported whether its CPU has bf16 units")
    return Bf16(True, f"the CPUs of all nodes have bf16 units ({answers[0].cpu})")


def bf16_of_gpu_nodes(answers: Sequence[NodeAnswer]) -> Bf16:
    """bf16 unless a GPU is known to be too old for it, which is rare in clusters."""
    known = [(answer.gpu, answer.host) for answer in answers if answer.gpu is not None]
    if not known:
        return Bf16(True, "GPUs from compute capability 8.0 on have bf16 units, and nvidia-smi lists no older one")
    capability, host = min(known)
    return bf16_of_gpus(f"the oldest GPU, of {host},", capability)


def ask(nodes: Sequence[str], *, gpu: bool) -> list[NodeAnswer]:
    """The answers of nodes, from a short task on each."""
    about = ray.remote(num_cpus=0, max_retries=1)(about_this_node)
    pending = {
        about.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(gpu=gpu): node
        for node in nodes
    }
    ready, late = ray.wait(list(pending), num_returns=len(pending), timeout=ASK_SECONDS) if pending else ([], [])
    answers = [NodeAnswer(f"node {pending[one][:8]}") for one in late]
    for one in ready:
        try:
            answers.append(ray.get(one))
        except ray.exceptions.RayError:
            answers.append(NodeAnswer(f"node {pending[one][:8]}"))
    return answers


def about_this_node(*, gpu: bool) -> NodeAnswer:
    """The task that runs on each node."""
    return NodeAnswer(socket.gethostname(), bf16_units(read_cpuinfo()), _capability() if gpu else None)


def _capability() -> tuple[int, int] | None:
    """The lowest compute capability of the GPUs here; None without an NVIDIA driver."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        found = [tuple(int(part) for part in line.strip().split(".")) for line in output.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    pairs = [(one[0], one[1]) for one in found if len(one) == 2]
    return min(pairs, default=None)
