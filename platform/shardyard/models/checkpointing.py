"""Activation checkpointing: what the backward pass computes again, what is kept, and what waits in host memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from shardyard.models.quirks import set_checkpoint_function
from shardyard.recipe.schema import Model

# Operations whose outputs `selective` keeps: products with weights and fused attention, which are nearly all the time
# of a block; and not products of queries with keys (bmm), whose output grows with the square of the row.
_KEPT_NAMES = ("mm", "addmm", "_grouped_mm", "_scaled_grouped_mm", "_scaled_mm", "convolution")
_ATTENTION_NAMES = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
Function = Callable[..., Any]


def checkpoint_activations(model: Model, built: PreTrainedModel) -> None:
    """Make the layers of a model of transformers compute their activations again as the recipe says."""
    if model.checkpointing == "none":
        return
    # The non-reentrant variant preserves the random state of dropout and works with torch.compile and ZeRO-3.
    built.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    set_checkpoint_function(built, checkpoint_function(model))
    layers = [one for one in built.modules() if isinstance(one, GradientCheckpointingLayer)]
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = is_checkpointed(model, index)


def is_checkpointed(model: Model, index: int) -> bool:
    """Whether layer `index`, from 0, computes its activations again."""
    return index % model.activation_checkpointing_interval == 0


def checkpoint_function(model: Model) -> Function:
    """A function that calls another one, and stores of it what the recipe says."""
    run = partial(checkpoint, use_reentrant=False)
    if model.checkpointing == "selective":
        run = partial(run, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    held = _InHostMemory if model.offload_activations else contextlib.nullcontext

    def call(function: Function, *inputs: Any, **named: Any) -> Any:
        with held():
            return run(function, *inputs, **named)

    return call


def kept_operations() -> frozenset[Any]:
    """The operations whose outputs `selective` keeps, as far as this torch has them."""
    return frozenset(_kept())


@cache
def _kept() -> dict[Any, int | None]:
    """Operation → position of its probability of dropout, if it has one."""
    found: dict[Any, int | None] = {}
    for name in (*_KEPT_NAMES, *_ATTENTION_NAMES):
        packet = getattr(torch.ops.aten, name, None)
        for overload in () if packet is None else packet.overloads():
            operation = getattr(packet, overload)
            arguments = [argument.name for argument in operation._schema.arguments]
            found[operation] = arguments.index("dropout_p") if "dropout_p" in arguments else None
    return found


def _policy(context: Any, operation: Any, *inputs: Any, **named: Any) -> CheckpointPolicy:
    """Keep the outputs of products and attention.

    Attention with dropout is computed again: an operation that is not would draw no random numbers then, and the
    dropout after it other ones than before.
    """
    kept = _kept()
    if operation not in kept:
        return CheckpointPolicy.PREFER_RECOMPUTE
    place = kept[operation]
    dropout = 0.0 if place is None else named.get("dropout_p", inputs[place] if len(inputs) > place else 0.0)
    return CheckpointPolicy.PREFER_RECOMPUTE if dropout else CheckpointPolicy.MUST_SAVE


class _InHostMemory(torch.autograd.graph.saved_tensors_hooks):
    """What autograd stores of a checkpointed block, its inputs, lies in pinned host memory until the backward pass."""

    def __init__(self) -> None:
        super().__init__(_to_host, _to_device)


def _to_host(tensor: Tensor) -> Any:
    if not tensor.is_cuda:
        return tensor
    # A stream of its own, so that the next block does not wait for the copy.
    stream = _copies(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    return host, tensor.device, stream.record_event()


def _to_device(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    host, device, copied = kept
    torch.cuda.current_stream(device).wait_event(copied)
    found: Tensor = host.to(device, non_blocking=True)
    return found


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
