"""The numbers of workers on which a run can go on: the same global batches, streams and axes."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.recipe.batching import streams_of
from shardyard.recipe.fields import Path
from shardyard.recipe.mesh import data_size, ranks_together, size_problem
from shardyard.recipe.mixture.stages import stage_recipes
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]


def size_rules(recipe: Recipe) -> Iterator[Finding]:
    """All rules of this file."""
    settings, path = recipe.cluster, ("cluster", "min_workers")
    least = settings.min_workers
    if least is None:
        return
    if least > settings.workers:
        yield path, f"is {least}, but cluster.workers, the most, is {settings.workers}"
        return
    if size_problem(recipe, settings.workers) is not None or _why_not(recipe, settings.workers) is not None:
        # The rules of `cluster.workers` say so.
        return
    reason = _why_not(recipe, least)
    if reason is not None:
        fitting = [size for size in range(settings.workers, 0, -1) if _why_not(recipe, size) is None]
        yield path, f"{least} workers cannot train: {reason}; numbers that can: {', '.join(map(str, fitting))}"


def sizes_of(recipe: Recipe) -> list[int]:
    """The numbers of workers that a run may have, the largest first; `cluster.workers` alone without
    `cluster.min_workers`."""
    most = recipe.cluster.workers
    least = most if recipe.cluster.min_workers is None else recipe.cluster.min_workers
    return [size for size in range(most, least - 1, -1) if size == most or _why_not(recipe, size) is None]


def _why_not(recipe: Recipe, workers: int) -> str | None:
    """Why a run cannot go on with so many workers; None if it can."""
    problem = size_problem(recipe, workers)
    if problem is not None:
        return f"{problem[0]} {problem[1]}"
    data, group = data_size(recipe, workers), ranks_together(recipe)
    if workers % group:
        return f"{group} ranks share layers"
    hpz = recipe.zero.hpz_partition_size
    if hpz > 1 and (workers % hpz or hpz >= workers):
        return f"zero.hpz_partition_size is {hpz}"
    for part in stage_recipes(recipe):
        rows, rest = divmod(part.train.global_batch, data)
        if rest:
            return f"{part.train.global_batch} rows of a global batch cannot be shared by {data}"
        if part.train.micro_batch is not None and rows % part.train.micro_batch:
            return f"train.micro_batch {part.train.micro_batch} does not divide their {rows} rows each"
    streams = streams_of(recipe, recipe.cluster.workers)
    if streams % data or streams_of(recipe, workers) != streams:
        return f"{streams} streams of data cannot be shared by {data} (data.streams)"
    return None
