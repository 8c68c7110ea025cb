"""Whether checkpoints are written beside training, and the host memory that it takes."""

from __future__ import annotations

from shardyard.planning.memory import Memory
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes

# What `checkpoint.background` is where the recipe does not say, and there is room.
BY_DEFAULT = False


def copy_bytes(recipe: Recipe, memory: Memory) -> int:
    """Bytes of a rank's copy of what it writes: its optimizer states, and below stage 3 on rank 0 the weights too."""
    states = memory.optimizer_bytes
    if recipe.zero.offload_optimizer and recipe.zero.offload_optimizer != "nvme":
        states = memory.offloaded_bytes
    return memory.parameters_bytes + states


def background_of(recipe: Recipe, memory: Memory, device_bytes: int | None, *, gpu: bool) -> tuple[bool, str]:
    """Whether checkpoints are written beside training, and why.

    Args:
        device_bytes: memory of a rank's device. That of hosts with GPUs is known only to the ranks, which decide
            before the first checkpoint.
    """
    copy = format_bytes(copy_bytes(recipe, memory))
    given = recipe.checkpoint.background
    if given is not None:
        why = "given by checkpoint.background"
        return given, f"{why}; a rank's copy of its states takes {copy} of host memory" if given else why
    if not BY_DEFAULT:
        return False, "checkpoint.background is not set"
    if recipe.zero.offload_optimizer == "nvme":
        return False, "a copy in host memory would be what zero.offload_optimizer nvme keeps out of it"
    needed = memory.device_bytes + memory.offloaded_bytes + copy_bytes(recipe, memory)
    if not gpu and device_bytes is not None and needed > device_bytes:
        return False, f"a copy of {copy} beside training needs {format_bytes(needed)} of {format_bytes(device_bytes)}"
    where = "pinned host memory" if gpu else "memory"
    return True, f"a step waits for a copy of a rank's states alone, {copy} of {where}"
