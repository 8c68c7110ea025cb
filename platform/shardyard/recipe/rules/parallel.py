"""Rules for the parallel axes: their sizes, checked together, and what they can be combined with."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.recipe import families
from shardyard.recipe.fields import Path
from shardyard.recipe.mesh import size_problem
from shardyard.recipe.rules.model import Sizes, effective_config
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sections.eight_bits import EIGHT_BITS
from shardyard.recipe.tensor_plans import SEQUENCE_FAMILIES, TENSOR_PLANS

Finding = tuple[Path, str]

# Objectives whose losses are sums over the tokens of one model without a second one beside it.
_OBJECTIVES = ("causal_lm", "instruction")
# Optimizers that work element by element, so that a part of a matrix is updated as it is in the whole.
_ELEMENTWISE = ("adamw", "adam", "sgd", "rmsprop", "lion", "adagrad")


def parallel_rules(recipe: Recipe) -> Iterator[Finding]:
    """All rules of this file."""
    problem = size_problem(recipe, recipe.cluster.workers)
    if problem is not None:
        yield tuple(problem[0].split(".")), problem[1]
    for name in ("tensor", "sequence"):
        if getattr(recipe.parallel, name) > 1:
            yield from _common(recipe, name)
    for rule in (_tensor, _tensor_sizes, _sequence, _sequence_sizes):
        yield from rule(recipe)


def _common(recipe: Recipe, name: str) -> Iterator[Finding]:
    """What neither tensor nor sequence parallelism can be combined with."""
    path, model = ("parallel", name), recipe.model
    known = TENSOR_PLANS.keys() if name == "tensor" else SEQUENCE_FAMILIES
    if model.module is not None:
        yield path, "is for families of transformers, not for model.module; set it to 1"
        return
    if model.family not in known:
        listed = ", ".join(sorted(known))
        yield path, f"is tested with {listed}, not with {model.family} (docs/large/parallel.md); set it to 1"
    if recipe.objective not in _OBJECTIVES:
        yield path, f"is for {' and '.join(_OBJECTIVES)}, not for {recipe.objective}; set it to 1"
    if model.compile:
        yield ("model", "compile"), f"is not tested with parallel.{name}; set it to false"
    if model.adapter is not None:
        yield (
            ("model", "adapter"),
            f"is not tested with parallel.{name}; set that to 1, as ZeRO-3 shards frozen weights",
        )
    if recipe.zero.offload_optimizer or recipe.zero.offload_parameters:
        field = "offload_optimizer" if recipe.zero.offload_optimizer else "offload_parameters"
        yield ("zero", field), f"is not tested with parallel.{name}; set it to false"


def _tensor(recipe: Recipe) -> Iterator[Finding]:
    if recipe.parallel.tensor == 1:
        return
    if recipe.parallel.expert > 1:
        why = "and parallel.tensor together train with other losses than one rank, by 5e-4 after five steps in fp32"
        yield ("parallel", "expert"), f"{why} (DeepSpeed 0.19.8); set one of them to 1"
    if recipe.zero.stage == 0 and recipe.train.precision != "fp32":
        yield ("zero", "stage"), "0 is tested with parallel.tensor in fp32 only; use 1, 2 or 3, or train.precision fp32"
    if recipe.model.freeze:
        yield ("model", "freeze"), "is not tested with parallel.tensor; remove it, or set parallel.tensor to 1"
    if recipe.optimizer.name not in _ELEMENTWISE:
        name, eight = recipe.optimizer.name, recipe.optimizer.name in EIGHT_BITS
        why = f"{name} needs whole matrices, which parallel.tensor splits"
        why = f"{name} is not tested with parallel.tensor" if eight else why
        yield ("optimizer", "name"), f"{why}; use one of {', '.join(_ELEMENTWISE)}"


def _tensor_sizes(recipe: Recipe) -> Iterator[Finding]:
    """Each rank of a tensor-parallel group has whole heads and an equal part of every matrix."""
    size, sizes = recipe.parallel.tensor, _sizes(recipe)
    if size == 1 or sizes is None:
        return
    for standard in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        total = sizes[standard]
        if total and total % size:
            yield ("parallel", "tensor"), _indivisible(f"the model's {sizes.name(standard)} {total}", total, size)


def _sequence(recipe: Recipe) -> Iterator[Finding]:
    if recipe.parallel.sequence == 1:
        return
    if recipe.model.attention not in (None, "sdpa"):
        why = f"{recipe.model.attention} is not tested with parallel.sequence; use sdpa, which takes FlashAttention's"
        yield ("model", "attention"), f"{why} kernels on GPUs where rows need no mask"
    config, length = effective_config(recipe), recipe.data.sequence_length
    window = None if config is None else families.config_value(recipe.model.family, config, "sliding_window")
    if config is not None and families.config_value(recipe.model.family, config, "use_sliding_window") is False:
        window = None
    if isinstance(window, int) and length and window < length:
        why = f"tokens see the {window} before them (sliding_window), which needs a mask that rows of {length} tokens"
        yield ("parallel", "sequence"), f"{why} on several ranks do not have; set it to 1"
    if recipe.model.experts.balance or recipe.model.experts.z_loss:
        name = "balance" if recipe.model.experts.balance else "z_loss"
        yield ("model", "experts", name), "would count a part of each row, with parallel.sequence; set one of them to 0"


def _sequence_sizes(recipe: Recipe) -> Iterator[Finding]:
    """Ulysses gives each rank an equal part of a row outside attention, and some of the heads within it."""
    size, length, sizes = recipe.parallel.sequence, recipe.data.sequence_length, _sizes(recipe)
    if size == 1:
        return
    path, tensor = ("parallel", "sequence"), recipe.parallel.tensor
    if length and length % size:
        yield path, _indivisible(f"data.sequence_length {length}", length, size)
    heads, groups = (None, None) if sizes is None else (sizes["num_attention_heads"], sizes["num_key_value_heads"])
    if sizes is None or heads is None or heads % tensor or (groups or heads) % tensor:
        return
    of_rank = "" if tensor == 1 else f" / parallel.tensor {tensor}"
    own, own_groups = heads // tensor, (groups or heads) // tensor
    if own % size:
        yield path, _indivisible(f"the model's {sizes.name('num_attention_heads')} {heads}{of_rank}", own, size)
    elif own_groups % size and size % own_groups:
        fitting = [n for n in range(1, own + 1) if own % n == 0 and (own_groups % n == 0 or n % own_groups == 0)]
        what = (
            f"the model's {sizes.name('num_key_value_heads')} {groups}{of_rank} neither divides {size} nor is divided "
        )
        yield path, f"{what}by it; set it to {_listed(fitting)}"


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
