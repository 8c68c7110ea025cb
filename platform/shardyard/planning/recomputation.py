"""Which activation checkpointing a plan tries where memory is short, and what it costs. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.planning.activations import checkpointed_share
from shardyard.planning.architecture import Architecture, flops_per_token
from shardyard.planning.memory import kept_of
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sections.model import Checkpointing
from shardyard.units import format_count


@dataclass(frozen=True)
class Recomputed:
    """`model.activation_checkpointing` and its interval, as chosen."""

    mode: Checkpointing = "none"
    interval: int = 1

    @property
    def share(self) -> float:
        """How much is computed again, by which choices compare."""
        return {"none": 0.0, "selective": 0.01, "full": 1.0}[self.mode] / self.interval

    def __str__(self) -> str:
        return self.mode if self.interval == 1 else f"{self.mode}, each {_ordinal(self.interval)} layer"


def cheapest_first(recipe: Recipe) -> tuple[Recomputed, ...]:
    """What to try, from the least to the most that is computed again."""
    if recipe.model.activation_checkpointing_interval > 1:
        return (Recomputed("full", recipe.model.activation_checkpointing_interval),)
    full = (Recomputed("full", 4), Recomputed("full", 2), Recomputed("full"))
    return (Recomputed("selective"), *full)


def with_recomputed(recipe: Recipe, chosen: Recomputed) -> Recipe:
    """The recipe with this activation checkpointing."""
    update: dict[str, object] = {
        "activation_checkpointing": chosen.mode,
        "activation_checkpointing_interval": chosen.interval,
    }
    if chosen.mode == "none":
        update["offload_activations"] = False  # there are no checkpoints to offload
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=update)})


def recomputation(recipe: Recipe, architecture: Architecture) -> str:
    """What the recipe's activation checkpointing costs, in words."""
    model = recipe.model
    share = _share(recipe, architecture)
    if not share:
        return "nothing is computed again"
    if model.checkpointing == "selective":
        return "all but products and attention is computed again, with no further matrix product"
    again = recomputed_flops_per_token(recipe, architecture)
    return f"{share:.0%} of the layers are computed again: {format_count(again)} FLOPs a token"


def recomputed_flops_per_token(recipe: Recipe, architecture: Architecture) -> float:
    """FLOPs for one token of what the backward pass computes again: the forward pass of checkpointed layers, which is a
    third of a training step's without the output layer."""
    model = recipe.model
    if model.checkpointing != "full":
        return 0.0
    head = 2 * architecture.vocabulary * architecture.hidden_size if architecture.flops_per_row is None else 0
    forward = flops_per_token(architecture, recipe.data.sequence_length or 1) / 3
    return _share(recipe, architecture) * max(0.0, forward - head)


def _share(recipe: Recipe, architecture: Architecture) -> float:
    """The share of layers that are computed again."""
    model, kept = recipe.model, kept_of(recipe, architecture)
    count = kept.count or architecture.layers
    return checkpointed_share(model.checkpointing, model.activation_checkpointing_interval, count)


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")
