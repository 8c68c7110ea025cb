"""Initial weights that depend only on the seed and the module's name.

The constructor's own initialisation consumes one stream of random numbers in the order in which modules are built, and
under `deepspeed.zero.Init` it sees parameters that are already partitioned and leaves them as allocated. Here the rule
of the family (`_init_weights` of transformers) initialises each module while its parameters are whole, from a generator
keyed by seed and name: the same weights at every ZeRO stage and world size, on CPUs and GPUs, with one block in memory
at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from shardyard.models.quirks import begin_sigmoid, forget_initialisation, initialisation_rule, place_patches

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[object]]


def initialise(model: PreTrainedModel, *, seed: int, gathered: Gather) -> list[str]:
    """Initialise every module of `model` in place.

    Returns:
        Names of the parameters that still hold NaN: the rule of the family leaves them to the constructor.

    Args:
        model: as constructed; its weights are overwritten.
        seed: the recipe's seed.
        gathered: context manager that makes the given parameters whole and writable (ZeRO-3), or a null context.
    """
    state = torch.get_rng_state()
    forget_initialisation(model)
    left: set[nn.Parameter] = set()
    with torch.no_grad():
        for name, module, outer, subtree in _units("", model, model):
            reached = _reach(module, subtree)
            with gathered(reached), on_host(reached):
                for inner_name, inner, rule in _post_order(name, module, _rule(outer, module), subtree):
                    torch.manual_seed(_key(seed, inner_name))
                    rule(inner)
                    place_patches(inner)
                    begin_sigmoid(inner)
                # A parent's rule may write what a child's has left.
                left = left - set(reached) | {parameter for parameter in reached if parameter.isnan().any()}
    torch.set_rng_state(state)
    return [name for name, parameter in model.named_parameters() if parameter in left]


@contextmanager
def on_host(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Context in which parameters lie on the CPU in fp32, where every rule draws.

    A GPU's generator has other numbers, and in 16 bits `uniform_` draws others too. So a model that is built whole on
    the host and then rounded starts from the same weights as one that ZeRO-3 shards as it is built.
    """
    plain = torch.device("cpu"), torch.float32
    elsewhere = [
        (parameter, parameter.data)
        for parameter in parameters
        if parameter.is_floating_point() and (parameter.device, parameter.dtype) != plain
    ]
    for parameter, data in elsewhere:
        parameter.data = data.to(*plain)
    try:
        yield
    finally:
        for parameter, data in elsewhere:
            data.copy_(parameter.data)
            parameter.data = data


def _units(
    name: str, module: nn.Module, outer: PreTrainedModel
) -> Iterator[tuple[str, nn.Module, PreTrainedModel, bool]]:
    """Subtrees without repeated blocks (whole), then the modules that contain them (alone), children first.

    Each with the innermost model of transformers around it, whose rule applies to it.
    """
    outer = module if isinstance(module, PreTrainedModel) else outer
    if not any(isinstance(inner, nn.ModuleList) for inner in module.modules()):
        yield name, module, outer, True
        return
    for child_name, child in module.named_children():
        yield from _units(f"{name}.{child_name}" if name else child_name, child, outer)
    yield name, module, outer, False


def _reach(module: nn.Module, subtree: bool) -> list[nn.Parameter]:
    """Parameters that a module's rule may write: some rules set the weights of children (CLIP: projections)."""
    if subtree:
        return list(module.parameters())
    near = (module, *(child for child in module.children() if not list(child.children())))
    return list(dict.fromkeys(parameter for part in near for parameter in part.parameters(recurse=False)))


def _post_order(
    name: str, module: nn.Module, rule: Callable[[nn.Module], None], recurse: bool
) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], None]]]:
    """Children before parents, because a parent's rule may rescale weights that a child's rule set (GPT-2's c_proj)."""
    if recurse:
        for child_name, child in module.named_children():
            yield from _post_order(f"{name}.{child_name}", child, _rule(rule, child), True)
    yield name, module, rule


def _rule(outer: PreTrainedModel | Callable[[nn.Module], None], module: nn.Module) -> Callable[[nn.Module], None]:
    """The rule for a module: a sub-model uses the rule of its family, everything else that of the enclosing model."""
    if isinstance(module, PreTrainedModel):
        return initialisation_rule(module)
    return initialisation_rule(outer) if isinstance(outer, PreTrainedModel) else outer


def _key(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
