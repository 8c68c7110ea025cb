"""Rules for the parallel axes: their sizes, checked together against ranks, heads, experts and rows."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.recipe.fields import Path
from shardyard.recipe.mesh import size_problem
from shardyard.recipe.rules.model import Sizes, effective_config
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]


def parallel_rules(recipe: Recipe) -> Iterator[Finding]:
    """All rules of this file."""
    problem = size_problem(recipe, recipe.cluster.workers)
    if problem is not None:
        yield tuple(problem[0].split(".")), problem[1]
    for rule in (_unsupported, _tensor_sizes, _sequence_sizes):
        yield from rule(recipe)


def _unsupported(recipe: Recipe) -> Iterator[Finding]:
    for name in ("tensor", "sequence"):
        if getattr(recipe.parallel, name) > 1:
            yield ("parallel", name), f"{name} parallelism cannot be trained yet, only planned; set it to 1"


def _tensor_sizes(recipe: Recipe) -> Iterator[Finding]:
    """Each rank of a tensor-parallel group has whole heads and an equal part of every matrix."""
    size, sizes = recipe.parallel.tensor, _sizes(recipe)
    if size == 1 or sizes is None:
        return
    for standard in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        total = sizes[standard]
        if total and total % size:
            yield ("parallel", "tensor"), _indivisible(f"the model's {sizes.name(standard)} {total}", total, size)


def _sequence_sizes(recipe: Recipe) -> Iterator[Finding]:
    """Ulysses gives each rank an equal part of a row outside attention, and some of the heads within it."""
    size, length, sizes = recipe.parallel.sequence, recipe.data.sequence_length, _sizes(recipe)
    if size == 1:
        return
    path = ("parallel", "sequence")
    if length and length % size:
        yield path, _indivisible(f"data.sequence_length {length}", length, size)
    if sizes is None:
        return
    heads, groups = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if heads and heads % size:
        yield path, _indivisible(f"the model's {sizes.name('num_attention_heads')} {heads}", heads, size)
    elif groups and groups % size and size % groups:
        fitting = [n for n in range(1, (heads or groups) + 1) if not (heads or groups) % n]
        fitting = [n for n in fitting if groups % n == 0 or n % groups == 0]
        what = f"the model's {sizes.name('num_key_value_heads')} {groups} neither divides {size} nor is divided by it"
        yield path, f"{what}; set it to {_listed(fitting)}"


def _sizes(recipe: Recipe) -> Sizes | None:
    config = effective_config(recipe)
    return None if config is None or recipe.model.module is not None else Sizes(recipe.model.family, config)


def _indivisible(what: str, total: int, size: int) -> str:
    fitting = [n for n in range(1, total + 1) if total % n == 0]
    near = [n for n in fitting if n <= 2 * size]
    return f"{what} cannot be shared by {size} ranks; set it to {_listed(near)}"


def _listed(sizes: list[int]) -> str:
    """`1, 2 or 4`."""
    *most, last = [str(size) for size in sizes]
    return f"{', '.join(most)} or {last}" if most else last
