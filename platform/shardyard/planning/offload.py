"""What offloading to files takes: space on the disk, buffers in host memory, and traffic of a step."""

from __future__ import annotations

from shardyard.planning.architecture import Architecture
from shardyard.recipe.schema import Recipe, Zero

# A rank has the weights of a sub-group, Adam's two states and the gradient in memory at once, and one buffer more.
SWAP_BUFFERS = 5
SUB_GROUP_SIZE = 1_000_000_000
NVME_SUB_GROUP_SIZE = 50_000_000
# Below this DeepSpeed keeps a sub-group in memory.
LEAST_SWAPPED_BYTES = 1 << 20


def sub_group_size(zero: Zero) -> int:
    """Numbers of a rank that the optimizer updates at once."""
    if zero.sub_group_size is not None:
        return zero.sub_group_size
    return NVME_SUB_GROUP_SIZE if zero.offload_optimizer == "nvme" else SUB_GROUP_SIZE


def swapped_bytes(recipe: Recipe, optimizer: int, owned: int) -> int:
    """Bytes of a rank's files: its optimizer states, and the fp32 gradient of each weight that it updates.

    Args:
        optimizer: bytes of its optimizer states with the fp32 weights.
        owned: weights that it updates.
    """
    return optimizer + 4 * owned if recipe.zero.offload_optimizer == "nvme" else 0


def swap_buffer_bytes(recipe: Recipe, architecture: Architecture, shards: int, owned: int) -> int:
    """Bytes of page-locked host memory through which a rank reads and writes its files.

    A sub-group ends with the parameter that fills it, so the largest one may add its share.
    """
    if recipe.zero.offload_optimizer != "nvme":
        return 0
    matrix = max(architecture.vocabulary * architecture.hidden_size, 4 * architecture.hidden_size**2) // shards
    return SWAP_BUFFERS * 4 * min(owned, sub_group_size(recipe.zero) + matrix)
