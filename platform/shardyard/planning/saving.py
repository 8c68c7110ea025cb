"""Whether checkpoints are written beside training, and the host memory that it takes."""

from __future__ import annotations

from shardyard.planning.memory import Memory
from shardyard.planning.micro_batch import refusal
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


def background_of(
    recipe: Recipe,
    memory: Memory,
    device_bytes: int | None,
    *,
    gpu: bool,
    ranks: int = 1,
    host_bytes: int | None = None,
) -> tuple[bool, str]:
    """Whether checkpoints are written beside training, and why.

    Args:
        device_bytes: memory of a rank's device. That of hosts with GPUs is known only to the ranks, which look before
            the first checkpoint.
        host_bytes: memory of the only host, which all `ranks` share; None if there are more, or none is known.

    Raises:
        RecipeError: the recipe asks for it, and the copies do not fit beside what fits without them.
    """
    given = recipe.checkpoint.background
    if given is False:
        return False, "given by checkpoint.background"
    copy = copy_bytes(recipe, memory)
    full = _lacks(memory, copy, device_bytes, ranks, host_bytes, gpu=gpu)
    if given:
        if full:
            raise refusal(
                "checkpoint.background",
                f"{full}; set it to false, which writes checkpoints between two steps without a copy, or train on more "
                "workers or a higher zero.stage, whose ranks hold less",
            )
        why = "given by checkpoint.background"
        return True, f"{why}; a rank's copy of its states takes {format_bytes(copy)} of host memory"
    if recipe.zero.offload_optimizer == "nvme":
        return False, "a copy in host memory would be what zero.offload_optimizer nvme keeps out of it"
    if full:
        return False, full
    where = "pinned host memory" if gpu else "memory"
    cost = f"{format_bytes(copy)} of {where}"
    if not BY_DEFAULT:
        return False, f"checkpoint.background is not set; with true a step waits for a copy of the states alone, {cost}"
    return True, f"a step waits for a copy of a rank's states alone, {cost}"


def _lacks(
    memory: Memory, copy: int, device_bytes: int | None, ranks: int, host_bytes: int | None, *, gpu: bool
) -> str:
    """Why the memory does not hold a rank's copy; "" if it does, as far as is known."""
    if not gpu:
        training = memory.device_bytes + memory.offloaded_bytes
        needed = training + copy
        # What does not fit without the copy either is refused for itself.
        if device_bytes is None or not training <= device_bytes < needed:
            return ""
        have = format_bytes(device_bytes)
        return f"a copy of {format_bytes(copy)} beside training needs {format_bytes(needed)} a rank, of {have}"
    needed = ranks * (memory.offloaded_bytes + copy)
    if host_bytes is None or needed <= host_bytes:
        return ""
    beside = " beside offloaded states" if memory.offloaded_bytes else ""
    copies = f"copies of {ranks} × {format_bytes(copy)}{beside}"
    return f"{copies} need {format_bytes(needed)} of this host, which has {format_bytes(host_bytes)}"
