"""What a step of ZeRO-3 holds beside a rank's own shards: gathered weights, and gradients on their way. Pure numbers.

The rules are those of DeepSpeed 0.19 (`partitioned_param_coordinator.py`, `stage3.py`).
"""

from __future__ import annotations

from shardyard.planning.architecture import Architecture
from shardyard.planning.reduction import BYTES, bucket_elements, prefetch_elements
from shardyard.recipe.mesh import MeshShape
from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Recipe


def gathered_parameters(recipe: Recipe, architecture: Architecture, mesh: MeshShape) -> int:
    """Weights that are gathered at once, in numbers.

    A weight stays if the next `zero.live_parameters` numbers of the step need it again: those of a block that is being
    recomputed, and those at the end of the forward pass, where the backward pass begins with them. Others are gathered
    ahead meanwhile.
    """
    zero = recipe.zero
    block = architecture.largest_block_parameters - _elsewhere(architecture.block_experts, mesh)
    own = architecture.parameters - _elsewhere(architecture.expert_parameters, mesh)
    kept = max(min(block, zero.live_parameters), zero.live_parameters // 2, largest_tensor(architecture, mesh))
    return min(own, kept + prefetch_elements(zero, mesh.zero, architecture.trained_parameters))


def gradient_bytes(recipe: Recipe, architecture: Architecture, mesh: MeshShape) -> tuple[int, int]:
    """Bytes of the bucket of gradients, which stays, and of the copies of a reduction.

    Copies are those of a bucket in the order of the ranks; or a gradient that is larger than the bucket, and its copy
    in the number format in which it is sent.
    """
    sent, width = BYTES[recipe.zero.communication_data_type], BYTES[precision_of(recipe)]
    trained = architecture.trained_parameters
    bucket = bucket_elements(recipe.zero, mesh.zero, trained)
    tensor = min(largest_tensor(architecture, mesh), trained)
    alone = tensor * (width + (sent if sent != width else 0)) if tensor > bucket else 0
    return sent * bucket, max(sent * min(bucket, trained), alone)


def largest_tensor(architecture: Architecture, mesh: MeshShape) -> int:
    """Numbers of the largest weight that a rank gathers as a whole."""
    in_experts = architecture.largest_tensor_parameters <= architecture.block_experts
    return architecture.largest_tensor_parameters // (mesh.expert if in_experts else 1)


def _elsewhere(experts: int, mesh: MeshShape) -> int:
    """Of some weights of experts, those that other ranks of an expert-parallel group have."""
    return experts - experts // mesh.expert
