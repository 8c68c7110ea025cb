"""How many readers a rank's data needs, and with them how many cores. Pure arithmetic on the recipe."""

from __future__ import annotations

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Recipe

# Readers that keep a GPU fed, by what a row costs: estimates, of which docs/develop/lab-notes.md measures a part.
BYTES, TEXT, MEDIA, OTHER = 1, 3, 8, 4


def readers_of(recipe: Recipe, *, gpu: bool) -> tuple[int, str]:
    """The number of readers of each rank, and why; 0: the loader's own thread makes the rows."""
    given, cores = recipe.data.readers, recipe.cluster.cpus_per_worker
    if given is not None:
        return given, "given by data.readers"
    if not gpu:
        return 0, "the loader's own thread: cores of a CPU rank are for training"
    number, what = _wanted(recipe)
    if cores is not None and number > max(0, cores - 1):
        return max(0, cores - 1), f"cluster.cpus_per_worker is {cores}, and one core trains; {what} would take {number}"
    return number, f"{what} on a GPU; fewer where a host has fewer cores a rank"


def cpus_of(recipe: Recipe, *, gpu: bool) -> tuple[int, str]:
    """The cores of each worker, and why."""
    given = recipe.cluster.cpus_per_worker
    if given is not None:
        return given, "cluster.cpus_per_worker"
    number, _ = readers_of(recipe, gpu=gpu)
    return number + 1, f"a core for training and one for each of {number} readers" if number else "a core for training"


def readers_here(wanted: int, recipe: Recipe, *, cores: int, ranks: int) -> int:
    """The readers of a rank on a host.

    Args:
        wanted: those of the plan.
        cores: of the host, that this process may use.
        ranks: that share them.
    """
    return wanted if recipe.data.readers is not None else min(wanted, max(0, cores // ranks - 1))


def _wanted(recipe: Recipe) -> tuple[int, str]:
    spec = objective_spec(recipe.objective)
    kinds = set(spec.columns.values())
    if kinds & {"image", "images", "audio"}:
        return MEDIA, "pictures or sound"
    if spec.rows == "packed":
        return (BYTES, "bytes") if recipe.tokenizer == "bytes" else (TEXT, "text that is tokenised")
    return OTHER, "rows of several parts"
