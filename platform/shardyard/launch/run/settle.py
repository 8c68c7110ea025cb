"""Fixing the precision and checking the memory at start: the nodes are queried, and the result is stored in the run
folder."""

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
from shardyard.launch.run.plans import refuse_what_does_not_fit
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
    """The answer of a node. cpu: its bf16 units, from `bf16_units`; gpu: the lowest compute capability; device_bytes:
    the memory of the smallest GPU."""

    host: str
    cpu: str | None = None
    gpu: tuple[int, int] | None = None
    device_bytes: int | None = None


def settle(job: Job, cluster: RayCluster, demand: Demand, placement: Placement, report: Callable[[str], None]) -> Job:
    """The job with a precision that its nodes support and a micro-batch that fits their GPUs, written to resolved.yaml
    and run.json.

    A run whose precision is already fixed keeps it, wherever its workers run now.

    Raises:
        UsageError: the memory of the GPUs was not known before, and the plan does not fit it.
    """
    unchecked = job.plan.world.gpu and job.plan.world.device_bytes is None
    if job.recipe.train.precision is not None and job.recipe.train.minutes is None and not unchecked:
        return job
    recipe, world = as_fixed(job.recipe, job.folder), job.plan.world
    ask_now = recipe.train.precision is None
    nodes = nodes_for(cluster, demand, placement) if ask_now or unchecked else []
    if ask_now:
        world = replace(world, bf16=bf16_of_nodes(nodes, gpu=world.gpu))
    if unchecked:
        world = replace(world, device_bytes=memory_of_nodes(nodes, recipe.cluster.gpus_per_worker or 1.0))
    plan = make_plan(recipe, job.plan.architecture, world)
    if unchecked and plan.fits is not None:
        refuse_what_does_not_fit(plan)
        report(f"micro-batch {plan.micro_batch}: {plan.reasons['micro_batch']}")
    recipe = with_precision(recipe, plan.precision)
    if ask_now:
        report_precision(plan.precision, plan.reasons["precision"], report)
    if ask_now or (unchecked and plan.fits is not None):
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


def memory_of_nodes(nodes: Sequence[str], share: float) -> int | None:
    """Bytes of a worker's share of the smallest GPU of all nodes; None if one of them does not tell."""
    found = [answer.device_bytes for answer in ask(nodes, gpu=True)]
    known = [size for size in found if size is not None]
    return int(min(known) * share) if known and len(known) == len(found) else None


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
    capability, device_bytes = _devices() if gpu else (None, None)
    return NodeAnswer(socket.gethostname(), bf16_units(read_cpuinfo()), capability, device_bytes)


def _devices() -> tuple[tuple[int, int] | None, int | None]:
    """The lowest compute capability of the GPUs here, and the memory of the smallest; None without an NVIDIA driver."""
    pairs = [tuple(int(part) for part in line.split(".")) for line in _driver("compute_cap") if _numeric(line)]
    mebibytes = [int(line) for line in _driver("memory.total") if line.isdigit()]
    capability = min(((one[0], one[1]) for one in pairs if len(one) == 2), default=None)
    return capability, min(mebibytes) * 2**20 if mebibytes else None


def _numeric(text: str) -> bool:
    return text.replace(".", "").isdigit()


def _driver(field: str) -> list[str]:
    """A field of every GPU, as the command of NVIDIA's driver tells it; none without that command."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]
