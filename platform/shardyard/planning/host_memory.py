"""Host memory and GPUs that the ranks of a node need, to request from schedulers."""

from __future__ import annotations

import math

from shardyard.planning.plan import RunPlan
from shardyard.planning.saving import copy_bytes
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes

GPUS_PER_NODE = 8  # typical for large runs
# Interpreter, torch, Ray's worker and the loader's buffers; with a GPU also CUDA's context and pinned memory.
RANK_BYTES = 2 * 1024**3
GPU_RANK_BYTES = 8 * 1024**3
# Small weights are exported in pieces of 64 MiB; measured, the buffers of gathering and writing take five of them.
SMALLEST_BLOCK_BYTES = 6 * 64 * 1024**2


def host_memory(recipe: Recipe, plan: RunPlan, ranks: int, *, gpu: bool) -> tuple[int, str]:
    """Bytes that `ranks` ranks need on a host, and why. Without GPUs this includes the device memory."""
    memory = plan.memory
    if gpu:
        # Saving a checkpoint copies optimizer states to the host first.
        each, why = GPU_RANK_BYTES + memory.optimizer_bytes, "states on their way to a checkpoint"
    else:
        each, why = RANK_BYTES + memory.device_bytes, "the model states"
    each += memory.offloaded_bytes
    if plan.background:
        # What is copied at once on GPUs is counted above.
        each += copy_bytes(recipe, memory) - (memory.optimizer_bytes if gpu else 0)
    weights, what = loading_bytes(recipe, plan)
    each += weights
    return ranks * each, f"{ranks} × {format_bytes(each)} ({why}, and {what})"


def loading_bytes(recipe: Recipe, plan: RunPlan) -> tuple[int, str]:
    """Bytes of weights that a rank holds on the host while a model is built, loaded or exported, and what they are.

    Measured by `tests/benchmarks/load_memory.py`; see docs/large/memory.md.
    """
    count, stage = plan.architecture.parameters, recipe.zero.stage
    pretrained = recipe.model.pretrained is not None
    if recipe.model.module is not None or (pretrained and read_whole(recipe) is not None):
        return 4 * count, "all weights in fp32"
    if stage == 3:
        # A gathered unit and what it is converted to: parts are read into the shards themselves. New rows of
        # embeddings need the mean and deviation of all others, in fp32.
        table = plan.architecture.vocabulary * plan.architecture.hidden_size
        resized = plan.architecture.pretrained_vocabulary is not None
        block = max(4 * plan.architecture.largest_block_parameters, (12 if resized else 4) * table)
        return max(block, SMALLEST_BLOCK_BYTES), "the weights of a block"
    if pretrained and precision_of(recipe) != "fp32":
        return 2 * count, "all weights in 16 bits"
    return 4 * count, "all weights in fp32"


def read_whole(recipe: Recipe) -> str | None:
    """Why every rank has to read all pretrained weights in fp32; None if it reads them in slices."""
    adapter = recipe.model.adapter
    if adapter is not None and (adapter.dora or adapter.init != "kaiming"):
        return "model.adapter begins with values computed from whole weights"
    if recipe.parallel.tensor > 1 or recipe.parallel.expert > 1:
        return "parallel.tensor and parallel.expert cut whole layers"
    return None


def gpus_of_node(each: float, ranks: int) -> int:
    """GPUs of a node whose ranks take the fraction `each` of a GPU: it is never split over two GPUs."""
    return math.ceil(ranks / math.floor(1 / each)) if each else 0
