"""Rules for mixtures of experts: load balancing and expert parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shardyard.objectives.registry import objective_spec, specs
from shardyard.recipe import families
from shardyard.recipe.expert_presets import EXPERT_PRESETS
from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]

# Names of the number of experts, and of the number of experts per token, in configurations.
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOICES = "num_experts_per_tok"
# DeepSpeed puts experts into separate groups only for optimizers that it builds itself. Muon needs whole gradients,
# which DeepSpeed does not support with experts.
_SPREAD_OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop")


def expert_rules(recipe: Recipe) -> Iterator[Finding]:
    """All rules of this file."""
    for rule in (_losses, _router_without_gradient, _parallel):
        yield from rule(recipe)


def _losses(recipe: Recipe) -> Iterator[Finding]:
    """Router losses need routers, and an objective that adds the losses."""
    for name in ("balance", "z_loss"):
        if not getattr(recipe.model.experts, name):
            continue
        path = ("model", "experts", name)
        if not objective_spec(recipe.objective).experts:
            yield path, f"does nothing for the objective {recipe.objective}, only for {_objectives()}; remove it"
        elif _is_dense(recipe):
            yield path, f"{recipe.model.family} has no experts; remove it, or use a family such as mixtral"


def _objectives() -> str:
    return " or ".join(spec.name for spec in specs() if spec.experts)


def _router_without_gradient(recipe: Recipe) -> Iterator[Finding]:
    """With one expert per token, the normalised weight is always 1."""
    model = recipe.model
    chosen, normalised = _value(recipe, _CHOICES), _value(recipe, "norm_topk_prob")
    if chosen == 1 and (model.family == "mixtral" or (model.family in ("qwen2_moe", "qwen3_moe") and normalised)):
        advice = "use family qwen3_moe" if model.family == "mixtral" else "set norm_topk_prob to false"
        yield (
            ("model", "config", _CHOICES),
            (
                f"with one expert a token the normalised weight is always 1, so the router learns nothing; {advice}, "
                "as Switch does"
            ),
        )


def _parallel(recipe: Recipe) -> Iterator[Finding]:
    """The experts that DeepSpeed's AutoEP supports, and the settings that it cannot be combined with."""
    parallel, path = recipe.parallel.expert, ("parallel", "expert")
    if parallel == 1:
        return
    if recipe.model.family not in EXPERT_PRESETS:
        known = ", ".join(sorted(EXPERT_PRESETS))
        yield path, f"DeepSpeed's AutoEP spreads the experts of {known}, not of {recipe.model.family}; set it to 1"
        return
    experts = experts_of(recipe)
    if experts is not None and experts % parallel:
        yield path, f"{experts} experts cannot be shared by {parallel} ranks; {_best(parallel, experts)} divides them"
    for found, other, message in _combinations(recipe):
        if found:
            yield other, message


def _combinations(recipe: Recipe) -> list[tuple[bool, Path, str]]:
    """(whether the setting is used, its path, why it is rejected)."""
    zero, model, spread = recipe.zero, recipe.model, "expert parallelism"
    noisy = bool(_value(recipe, "router_jitter_noise"))
    return [
        (
            zero.stage == 0,
            ("zero", "stage"),
            f"0 clips gradients by the norm of each rank alone with {spread}; use stage 1, 2 or 3",
        ),
        (bool(zero.offload_optimizer), ("zero", "offload_optimizer"), f"is not tested with {spread}; set it to false"),
        (
            bool(zero.offload_parameters),
            ("zero", "offload_parameters"),
            f"is not tested with {spread}; set it to false",
        ),
        (model.compile, ("model", "compile"), f"cannot trace models with {spread}; set it to false"),
        (
            model.adapter is not None,
            ("model", "adapter"),
            (
                f"cannot be combined with {spread}, because DeepSpeed's AutoEP trains and saves no other weights of "
                "experts than their own; set parallel.expert to 1"
            ),
        ),
        (bool(model.freeze), ("model", "freeze"), f"does not support {spread}; set parallel.expert to 1"),
        (
            not objective_spec(recipe.objective).experts,
            ("parallel", "expert"),
            f"is for the objective {_objectives()}, not {recipe.objective}; set it to 1",
        ),
        (
            recipe.optimizer.name not in _SPREAD_OPTIMIZERS,
            ("optimizer", "name"),
            f"{recipe.optimizer.name} does not support {spread}; use one of {', '.join(_SPREAD_OPTIMIZERS)}",
        ),
        (
            noisy,
            ("model", "config", "router_jitter_noise"),
            f"{spread} has no router noise; set it to 0, or parallel.expert to 1",
        ),
    ]


def _is_dense(recipe: Recipe) -> bool:
    """Whether the family is known to have no experts; an unknown family may have some."""
    fields = families.config_fields(recipe.model.family)
    return fields is not None and not fields.names & set(EXPERT_COUNTS)


def experts_of(recipe: Recipe) -> int | None:
    """Number of experts of a layer; None if the recipe does not give it."""
    found = next((value for name in EXPERT_COUNTS if (value := _value(recipe, name)) is not None), None)
    return found if isinstance(found, int) else None


def _value(recipe: Recipe, name: str) -> Any:
    """A field of the model's configuration: the recipe's value, or the family's default if it is a literal."""
    if name in recipe.model.config:
        return recipe.model.config[name]
    if recipe.model.pretrained is not None:
        return None
    fields = families.config_fields(recipe.model.family)
    return None if fields is None else fields.defaults.get(name)


def _best(parallel: int, total: int) -> int:
    """The largest number up to `parallel` that divides `total`."""
    return next(size for size in range(min(parallel, total), 0, -1) if total % size == 0)
