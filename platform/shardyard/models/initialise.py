"""Initial weights that depend on the seed and the module's name alone.

The constructor's own initialisation consumes one stream of random numbers in the order in which modules are built, and
under `deepspeed.zero.Init` it sees parameters that are already partitioned and leaves them as they were allocated. Here
each module is initialised by its family's own rule (`_init_weights` of transformers) while its parameters are whole,
from a generator keyed by seed and name: the same weights at every ZeRO stage and world size, with one block in memory
at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers import PreTrainedModel

from shardyard.models.quirks import forget_initialisation, initialisation_rule, place_patches

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[object]]


def initialise(model: PreTrainedModel, *, seed: int, gathered: Gather) -> None:
    """Initialise every module of `model` in place.

    Args:
        model: as constructed, its weights of no value.
        seed: the recipe's seed.
        gathered: context in which the given parameters are whole and writable (ZeRO-3), or a null context.
    """
    state = torch.get_rng_state()
    forget_initialisation(model)
    with torch.no_grad():
        for name, module, subtree in _units("", model):
            with gathered(_reach(module, subtree)):
                for inner_name, inner, rule in _post_order(name, module, _rule(model, module), subtree):
                    torch.manual_seed(_key(seed, inner_name))
                    rule(inner)
                    place_patches(inner)
    torch.set_rng_state(state)


def _units(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Subtrees without repeated blocks (whole), then the modules that hold them (alone), children first."""
    if not any(isinstance(inner, nn.ModuleList) for inner in module.modules()):
        yield name, module, True
        return
    for child_name, child in module.named_children():
        yield from _units(f"{name}.{child_name}" if name else child_name, child)
    yield name, module, False


def _reach(module: nn.Module, subtree: bool) -> list[nn.Parameter]:
    """What the rule of a module may write to: some set the weights of their children (CLIP its projections)."""
    if subtree:
        return list(module.parameters())
    near = (module, *(child for child in module.children() if not list(child.children())))
    return list(dict.fromkeys(parameter for part in near for parameter in part.parameters(recurse=False)))


def _post_order(
    name: str, module: nn.Module, rule: Callable[[nn.Module], None], recurse: bool
) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], None]]]:
    """Children before parents, because a parent's rule may rescale what its children's rule set (GPT-2's c_proj)."""
    if recurse:
        for child_name, child in module.named_children():
            yield from _post_order(f"{name}.{child_name}", child, _rule(rule, child), True)
    yield name, module, rule


def _rule(outer: PreTrainedModel | Callable[[nn.Module], None], module: nn.Module) -> Callable[[nn.Module], None]:
    """A sub-model brings the rule of its own family; everything else follows the model around it."""
    if isinstance(module, PreTrainedModel):
        return initialisation_rule(module)
    return initialisation_rule(outer) if isinstance(outer, PreTrainedModel) else outer


def _key(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
