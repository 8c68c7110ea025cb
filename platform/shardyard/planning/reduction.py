"""How gradients are added up and reduced over the ranks: number formats, bucket sizes, bytes sent. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardyard.recipe.precision import precision_of
from shardyard.recipe.schema import Precision, Recipe, Zero

BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
# The default bucket, in numbers: that of Megatron-LM's distributed optimizer, which grows with the ranks, because each
# rank's share of a bucket is one message. At most DeepSpeed's own default, because buckets are memory.
_LEAST, _PER_RANK, _MOST = 40_000_000, 1_000_000, 500_000_000
# DeepSpeed's own default of what ZeRO-3 gathers ahead: it needs no larger messages, and holds them in memory.
_MOST_AHEAD = 50_000_000


def accumulation_type(recipe: Recipe) -> Precision:
    """The number format in which gradients are added up and kept until the optimizer's step."""
    precision = precision_of(recipe)
    return "fp32" if precision == "fp32" else recipe.zero.grad_accum_dtype


def bucket_elements(zero: Zero, data_parallel: int, parameters: int | None = None) -> int:
    """Numbers in a bucket of gradients or gathered parameters; no more than the model has parameters, if given."""
    # DeepSpeed aligns gathered partitions to pairs of numbers, and stage 2 refuses a bucket of an odd number of them.
    if zero.bucket_bytes is not None:
        return max(2, zero.bucket_bytes // 8 * 2)
    elements = min(_MOST, max(_LEAST, _PER_RANK * data_parallel))
    return elements if parameters is None else min(elements, 2 * math.ceil(parameters / 2))


def prefetch_elements(zero: Zero, data_parallel: int, parameters: int | None = None) -> int:
    """Numbers that ZeRO-3 gathers ahead of their use."""
    elements = bucket_elements(zero, data_parallel, parameters)
    return elements if zero.bucket_bytes is not None else min(_MOST_AHEAD, elements)


def reduced_bytes_per_step(recipe: Recipe, parameters: int, accumulation: int) -> int:
    """Bytes of gradients that each rank hands to reductions in a step of `accumulation` micro-batches.

    Stages 0 and 1 all-reduce once a step, stage 2 all-reduces and stage 3 reduce-scatters after each micro-batch; what
    a rank sends of an all-reduce is about twice as much, of a reduce-scatter as much.

    Args:
        parameters: the trained ones that a rank has gradients of.
    """
    times = accumulation if recipe.zero.stage >= 2 else 1
    return times * BYTES[recipe.zero.communication_data_type] * parameters


def reduces_afterwards(recipe: Recipe) -> bool:
    """Whether gradients are reduced all at once after the last backward pass of a step: without ZeRO, and by the
    optimizer that DeepSpeed takes for bf16 at stage 1."""
    in_fp32 = precision_of(recipe) == "bf16" and accumulation_type(recipe) == "fp32"
    return recipe.zero.stage == 0 or (recipe.zero.stage == 1 and in_fp32 and not recipe.zero.offload_optimizer)


@dataclass(frozen=True)
class Buckets:
    """Bytes of the buffers of reductions at stages 0 to 2.

    collected: in which gradients are collected. converted: a copy in the number format in which they are sent.
    at_the_end: whether that copy exists only when the backward pass is over.
    """

    collected: int
    converted: int
    at_the_end: bool


def buckets_of(recipe: Recipe, parameters: int, data_parallel: int, *, gpu: bool = True) -> Buckets:
    """The buffers in which gradients are collected, converted and reduced, at stages 0 to 2.

    Args:
        parameters: the trained ones.
        gpu: whether reductions overlap the backward pass.
    """
    stage, sent = recipe.zero.stage, BYTES[recipe.zero.communication_data_type]
    kept = BYTES[accumulation_type(recipe)]
    if reduces_afterwards(recipe):
        # DeepSpeed flattens up to so many, whatever the size of a bucket, and converts the copy.
        elements = min(_MOST, parameters)
        return Buckets(elements * kept, elements * (sent if sent != kept else 0), at_the_end=True)
    elements = bucket_elements(recipe.zero, data_parallel, parameters)
    kept = BYTES[precision_of(recipe)] if stage == 2 else kept
    converted = min(elements, parameters) * (sent if sent != kept else 0)
    # Two buckets are filled in turn, while the other one is reduced; without streams there is one. It is allocated as
    # long as the recipe says, even if the model has fewer weights.
    at_the_end = elements >= parameters or (stage == 1 and not gpu)
    return Buckets(elements * kept * (2 if gpu else 1), converted, at_the_end)
