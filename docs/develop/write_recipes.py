"""Writes the tables of docs/recipes.md and recipes/sizes.json; `make schema` runs it, and tests compare both."""

from __future__ import annotations

from pathlib import Path

from shardyard.launch.run.architecture_cache import SIZES, shipped_sizes
from shardyard.launch.run.initial import for_planning
from shardyard.launch.run.prepare import prepare
from shardyard.launch.run.world import world_of
from shardyard.planning.architecture import Architecture
from shardyard.recipe.catalog.shipped import share_folder, shipped_recipes
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.units import format_count

NO_RUNS = Path("/nonexistent")
PAGE = Path(__file__).parents[1] / "recipes.md"
START, END = "<!-- written by docs/develop/write_recipes.py -->\n", "<!-- end -->\n"
HEAD = "| recipe | parameters | ranks | paper |\n|---|---|---|---|\n"
# In the order in which a person meets them.
FAMILIES = ("gpt", "bert", "moe", "seq2seq", "vision", "multimodal", "speech", "finetune")


def line(name: str, recipe: Recipe, size: Architecture) -> str:
    """The row of one recipe: name, parameters, what it runs on, the first paper that it names."""
    paper = (recipe.paper or "").split(";")[0].strip()
    ranks = f"{recipe.cluster.workers} {'GPUs' if recipe.cluster.gpus_per_worker else 'CPU'}"
    return f"| `{name}` | {_parameters(size)} | {ranks} | {paper} |\n"


def measured() -> tuple[dict[str, Recipe], dict[str, Architecture]]:
    """The shipped recipes and the sizes of their models, by name."""
    found = {shipped.name: load_recipe(shipped.name).recipe for shipped in shipped_recipes()}
    return found, {name: _size(recipe) for name, recipe in found.items()}


def tables(found: dict[str, Recipe], sizes: dict[str, Architecture]) -> str:
    """One table a family; recipes for a machine without GPUs come first, then by size."""
    text = ""
    for family in FAMILIES:
        names = [name for name in found if name.startswith(f"{family}/")]
        names.sort(key=lambda name: (found[name].cluster.gpus_per_worker or 0, sizes[name].parameters, name))
        text += f"\n### {family}\n\n{HEAD}" + "".join(line(name, found[name], sizes[name]) for name in names)
    return text + "\n"


def page(found: dict[str, Recipe], sizes: dict[str, Architecture]) -> str:
    """The page with its tables anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return before + START + tables(found, sizes) + END + rest.partition(END)[2]


def _size(recipe: Recipe) -> Architecture:
    return prepare(for_planning(recipe, NO_RUNS), world_of(recipe.cluster)).architecture


def _parameters(size: Architecture) -> str:
    notes = []
    if size.active_parameters != size.parameters:
        notes.append(f"{format_count(size.active_parameters)} active")
    if size.trainable_parameters is not None:
        notes.append(f"{format_count(size.trainable_parameters)} trained")
    return format_count(size.parameters) + (f" ({', '.join(notes)})" if notes else "")


if __name__ == "__main__":
    recipes, architectures = measured()
    PAGE.write_text(page(recipes, architectures), encoding="utf-8")
    pairs = [(for_planning(recipe, NO_RUNS), architectures[name]) for name, recipe in recipes.items()]
    (share_folder("recipes") / SIZES).write_text(shipped_sizes(pairs), encoding="utf-8")
