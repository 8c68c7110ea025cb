"""What keeps the documents of a packed row apart, and where that is decided."""

from __future__ import annotations

from typing import Literal

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Data, Recipe

Isolation = Literal["positions", "mask", "rows"]
# In the order in which they are tried: position ids cost nothing, a mask grows with the square of the row, and rows of
# one document leave a part of each row empty.
ISOLATIONS: tuple[Isolation, ...] = ("positions", "mask", "rows")


def isolation_of(data: Data) -> Isolation:
    """What isolates documents: decided when the run was planned. Runs from before there was a choice used positions."""
    return "positions" if data.isolation == "auto" else data.isolation


def is_packed(recipe: Recipe) -> bool:
    """Whether the recipe's rows hold several documents that must not see each other."""
    packed = objective_spec(recipe.objective).rows == "packed" or bool(recipe.data.packing)
    return recipe.data.isolate_documents and packed


def packs_best_fit(data: Data) -> bool:
    """Whether documents or conversations are packed whole; `packing: true` is the older name for conversations."""
    return data.packing in (True, "best_fit")


def leaves_gaps(recipe: Recipe) -> bool:
    """Whether rows may be partly empty: whole examples are packed into them, or each document has its own."""
    return packs_best_fit(recipe.data) or (recipe.data.isolation == "rows" and is_packed(recipe))


def with_isolation(recipe: Recipe, isolation: Isolation) -> Recipe:
    """The recipe with `data.isolation` set."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"isolation": isolation})})
