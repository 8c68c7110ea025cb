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

    Weights are gathered ahead, a bucket at each module, until `zero.live_parameters` numbers are; the weight that is
    needed next is gathered in any case. At the turn from the forward to the backward pass the largest one, the table of
    the vocabulary, meets as many of the last blocks. Experts of which each rank has its own are never gathered.
    """
    zero, experts = recipe.zero, architecture.expert_parameters
    own = architecture.parameters - (experts if _own_experts(mesh) else _elsewhere(experts, mesh))
    tensor = largest_tensor(architecture, mesh)
    if _own_experts(mesh) and architecture.largest_tensor_parameters <= architecture.block_experts:
        tensor = min(tensor, architecture.vocabulary * architecture.hidden_size)
    block = architecture.largest_block_parameters - _elsewhere(architecture.block_experts, mesh)
    bucket = prefetch_elements(zero, mesh.zero, architecture.trained_parameters)
    # A compiled block is gathered whole, whatever the limit.
    ahead = max(zero.live_parameters, block if recipe.model.compile else min(block, bucket))
    return min(own, ahead + tensor)


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


def _own_experts(mesh: MeshShape) -> bool:
    """Whether no two ranks have the same experts, so that ZeRO shards none of them."""
    return mesh.expert > 1 and mesh.zero <= mesh.expert


def _elsewhere(experts: int, mesh: MeshShape) -> int:
    """Of some weights of experts, those that other ranks of an expert-parallel group have."""
    return experts - experts // mesh.expert
