"""Host memory and GPUs that the ranks of a node need, to request from schedulers."""

from __future__ import annotations

import math

from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes

GPUS_PER_NODE = 8  # typical for large runs
# Interpreter, torch, Ray's worker and the loader's buffers; with a GPU also CUDA's context and pinned memory.
RANK_BYTES = 2 * 1024**3
GPU_RANK_BYTES = 8 * 1024**3


def host_memory(recipe: Recipe, plan: RunPlan, ranks: int, *, gpu: bool) -> tuple[int, str]:
    """Bytes that `ranks` ranks need on a host, and why. Without GPUs this includes the device memory."""
    memory, count = plan.memory, plan.architecture.parameters
    if gpu:
        # Saving a checkpoint copies optimizer states to the host first.
        each, why = GPU_RANK_BYTES + memory.optimizer_bytes, "states on their way to a checkpoint"
    else:
        each, why = RANK_BYTES + memory.device_bytes, "the model states"
    each += memory.offloaded_bytes
    if recipe.checkpoint.background:
        # The copy of a shard. Below stage 3 rank 0 copies the weights too.
        each += memory.parameters_bytes + (0 if gpu else memory.optimizer_bytes)
    # Below stage 3 every rank builds all weights in fp32; stage 3 gathers them once, on one rank, in 16 bits to export.
    if recipe.zero.stage < 3:
        each += 4 * count
        return ranks * each, f"{ranks} × {format_bytes(each)} ({why}, and the weights)"
    total = 2 * count
    text = f"{ranks} × {format_bytes(each)} ({why}) and {format_bytes(total)} (the gathered weights)"
    return ranks * each + total, text


def gpus_of_node(each: float, ranks: int) -> int:
    """GPUs of a node whose ranks take the fraction `each` of a GPU: it is never split over two GPUs."""
    return math.ceil(ranks / math.floor(1 / each)) if each else 0
