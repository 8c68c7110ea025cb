"""Where checkpoints go."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sources import stores


def checkpoint_rules(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """An address to which nothing can be copied, and why."""
    mirror = recipe.checkpoint.mirror
    if mirror is not None and (problem := stores.problem(mirror)) is not None:
        yield ("checkpoint", "mirror"), problem
