"""What a search may change: fields that move memory and speed and leave the mathematics as it is. Pure.

Global batch, optimizer, precision, data and schedule are the user's and stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import get_args

from shardyard.planning.architecture import Architecture
from shardyard.recipe.mesh import size_problem
from shardyard.recipe.rules.experts import expert_rules
from shardyard.recipe.rules.parallel import parallel_rules
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sections.base import Section
from shardyard.recipe.sections.model import Model

Value = str | int | bool | None
# By dotted path; what is not named stays as the recipe has it.
Changes = Mapping[str, Value]

# Ranks that share the tokens of a row: more than this have too few heads in most models.
_MOST_SEQUENCE = 64
_OFFLOADS = ((False, False), (True, False), (True, True))
CHECKPOINTING = "model.activation_checkpointing"


def changed(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with other values; nothing is checked."""
    for path, value in changes.items():
        name, _, field = path.partition(".")
        section = getattr(recipe, name).model_copy(update={field: value})
        recipe = recipe.model_copy(update={name: section})
    return recipe


def differing(recipe: Recipe, changes: Changes) -> dict[str, Value]:
    """Those of `changes` that are not what the recipe has."""
    return {path: value for path, value in changes.items() if value != value_at(recipe, path)}


def value_at(recipe: Recipe, path: str) -> Value:
    """The value of a field of a section."""
    name, _, field = path.partition(".")
    section: Section = getattr(recipe, name)
    value: Value = getattr(section, field)
    return value


def override(path: str, value: Value) -> str:
    """`zero.stage=3`, as -s takes it."""
    if value is None:
        return f"{path}=null"
    return f"{path}={str(value).lower() if isinstance(value, bool) else value}"


def axes(recipe: Recipe, architecture: Architecture, ranks: int, per_node: int) -> list[dict[str, Value]]:
    """The sizes of parallel axes that the recipe's rules accept for `ranks` ranks; tensor groups stay on a node."""
    tensors = _powers(min(per_node, ranks))
    sequences = _powers(min(_MOST_SEQUENCE, ranks))
    experts = _powers(ranks) if architecture.expert_parameters else [1]
    found: list[dict[str, Value]] = []
    given = recipe.parallel
    for tensor, sequence, expert in itertools.product(tensors, sequences, experts):
        sizes: dict[str, Value] = {
            "parallel.tensor": tensor,
            "parallel.sequence": sequence,
            "parallel.expert": expert,
        }
        as_is = (tensor, sequence, expert) == (given.tensor, given.sequence, given.expert)
        if as_is or _accepted(recipe, sizes, ranks):
            found.append(sizes)
    return found


def _accepted(recipe: Recipe, sizes: dict[str, Value], ranks: int) -> bool:
    """By the rules of these fields alone, which take little time; `search.sound` asks all of them."""
    one = changed(recipe, sizes)
    if size_problem(one, ranks) is not None or any(parallel_rules(one)):
        return False
    return any(not any(expert_rules(changed(one, {"zero.stage": stage}))) for stage in range(4))


def memory_settings(recipe: Recipe) -> Iterator[dict[str, Value]]:
    """ZeRO stage, offloading and activation checkpointing, in the order of what they cost; unchecked."""
    for mode, (optimizer, parameters), stage in itertools.product(checkpointing_modes(recipe), _OFFLOADS, range(4)):
        if (optimizer and not stage) or (parameters and stage != 3):
            continue
        yield {
            "zero.stage": stage,
            "zero.offload_optimizer": optimizer,
            "zero.offload_parameters": parameters,
            CHECKPOINTING: mode,
        }


def checkpointing_modes(recipe: Recipe) -> list[Value]:
    """Values of `model.activation_checkpointing`: first what the recipe has, so that it stays where it is as good."""
    annotation = Model.model_fields["activation_checkpointing"].annotation
    modes: list[Value] = [name for part in get_args(annotation) for name in get_args(part)] or [False, True]
    given = value_at(recipe, CHECKPOINTING)
    known = {given, {False: "none", True: "full"}.get(given) if isinstance(given, bool) else given}
    return [given, *(mode for mode in modes if mode not in known)]


def _powers(most: int) -> list[int]:
    """1, 2, 4, … up to `most`."""
    return [2**exponent for exponent in range(most.bit_length()) if 2**exponent <= most]
