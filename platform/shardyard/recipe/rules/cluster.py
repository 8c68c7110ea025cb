"""Rules for placement: how many ranks share a node or a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.recipe.fields import Path
from shardyard.recipe.mesh import ranks_together, together_in_words
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]


def cluster_rules(recipe: Recipe) -> Iterator[Finding]:
    """All rules of this file."""
    for rule in (_strategy, _groups):
        yield from rule(recipe)


def _strategy(recipe: Recipe) -> Iterator[Finding]:
    settings, path = recipe.cluster, ("cluster", "placement")
    share = settings.workers_per_node
    if settings.placement == "strict_spread" and share not in (None, 1):
        yield path, f"strict_spread puts one rank on each node, but workers_per_node is {share}; remove one of them"
    if settings.placement == "strict_pack" and share is not None and share < settings.workers:
        yield (
            path,
            (
                f"strict_pack puts all {settings.workers} workers on one node, but workers_per_node is {share}; remove "
                "one of them"
            ),
        )


def _groups(recipe: Recipe) -> Iterator[Finding]:
    """Ranks that share layers exchange activations in every layer, so they share a node."""
    settings, group = recipe.cluster, ranks_together(recipe)
    if group == 1:
        return
    together = f"{together_in_words(recipe)} and stay on one node"
    if settings.placement == "strict_spread":
        yield ("cluster", "placement"), f"strict_spread has one rank a node, but {together}; use pack or spread"
    elif settings.workers_per_node is not None and settings.workers_per_node % group:
        yield ("cluster", "workers_per_node"), f"{settings.workers_per_node} is not a multiple of {group}: {together}"
