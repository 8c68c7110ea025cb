"""Plans of the shipped recipes, each computed once for all tests, without weights, data or network."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shardyard.launch.run.architecture_cache import shipped_size
from shardyard.launch.run.initial import for_planning
from shardyard.launch.run.prepare import prepare
from shardyard.launch.run.world import world_of
from shardyard.planning.architecture import Architecture
from shardyard.planning.plan import RunPlan, make_plan
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe

NO_RUNS = Path("/nonexistent")
# Radford et al. 2019: 12 layers of 768, 12 heads, 50257 tokens, 1024 positions.
GPT2 = Architecture(
    family="gpt2",
    parameters=124_439_808,
    matmul_parameters=124_439_808 - 1024 * 768,
    largest_block_parameters=7_087_872,
    layers=12,
    hidden_size=768,
    heads=12,
    vocabulary=50257,
    positions=1024,
)
# Llama 3 8B.
LLAMA3_8B = Architecture(
    family="llama",
    parameters=8_030_261_248,
    matmul_parameters=7_504_924_672,
    largest_block_parameters=218_112_000,
    layers=32,
    hidden_size=4096,
    heads=32,
    vocabulary=128_256,
    positions=8192,
)


@dataclass(frozen=True)
class Planned:
    """A recipe, its plan, and the CPU seconds that the plan took."""

    recipe: Recipe
    plan: RunPlan
    seconds: float


def tiny_architecture(family: str) -> Architecture:
    """Sizes of a model that is never built, for what a plan computes with them."""
    return Architecture(
        family=family,
        parameters=1024,
        matmul_parameters=1024,
        largest_block_parameters=256,
        layers=2,
        hidden_size=8,
        heads=2,
        vocabulary=64,
        positions=64,
    )


@cache
def loaded(name: str) -> Recipe:
    """A shipped recipe."""
    return load_recipe(name).recipe


@cache
def planned(name: str) -> Planned:
    """The plan of a shipped recipe where no run has finished yet; what it starts from is known by its sizes."""
    recipe = loaded(name)
    start = time.process_time()
    plan = prepare(for_planning(recipe, NO_RUNS), world_of(recipe.cluster))
    return Planned(recipe, plan, time.process_time() - start)


@cache
def planned_by_shipped_size(name: str) -> RunPlan:
    """The plan of a shipped recipe by the sizes of recipes/sizes.json, which `test_recipes_sweep.py` measures again."""
    recipe = for_planning(loaded(name), NO_RUNS)
    size = shipped_size(recipe)
    return planned(name).plan if size is None else make_plan(recipe, size, world_of(recipe.cluster))
