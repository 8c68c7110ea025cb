"""Shell completion: recipes, sweeps, runs, fields and datasets.

Each function runs on a press of Tab, so it imports only what it needs, and unreadable files are ignored.
"""

from __future__ import annotations

from typing import Any

import typer

from shardyard.errors import ShardyardError
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.catalog.shipped import shipped_recipes, shipped_sweeps, tokenizer_specs


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes."""
    return [found.name for found in shipped_recipes() if found.name.startswith(incomplete)]


def sweep_names(incomplete: str) -> list[str]:
    """Shipped sweeps."""
    return [found.name for found in shipped_sweeps() if found.name.startswith(incomplete)]


def recipes_and_fields(incomplete: str) -> list[str]:
    """Arguments of `explain`."""
    return [*recipe_names(incomplete), *field_names(incomplete)]


def field_names(incomplete: str) -> list[str]:
    """Fields of a recipe, by dotted path."""
    from shardyard.recipe.fields import all_paths

    return [path for path in all_paths() if path.startswith(incomplete)]


def overrides(incomplete: str) -> list[str]:
    """Fields with an equals sign, for `-s`; nothing for a value."""
    return [] if "=" in incomplete else [f"{path}=" for path in field_names(incomplete)]


def run_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs of the runs folder, newest first."""
    from shardyard.tracking.run.folder import list_runs, runs_folder

    try:
        ids = [run.id for run in list_runs(runs_folder(_runs_dir(ctx)))]
    except ShardyardError:
        return []
    return [name for name in (*ids, "latest") if ids and name.startswith(incomplete)]


def accelerators(incomplete: str) -> list[str]:
    """Accelerators of the table."""
    from shardyard.planning.forecast.accelerators import ACCELERATORS

    return [one.name for one in ACCELERATORS if one.name.startswith(incomplete)]


def scheduler_names(incomplete: str) -> list[str]:
    """Names of schedulers."""
    from shardyard.launch.schedulers.registry import names

    return [name for name in names() if name.startswith(incomplete)]


def sweep_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Sweeps of the runs folder, by their folders."""
    from shardyard.tracking.run.folder import runs_folder

    found = (runs_folder(_runs_dir(ctx)) / "sweeps").glob("*/sweep.json")
    return sorted((path.parent.name for path in found if path.parent.name.startswith(incomplete)), reverse=True)


def spec_names(incomplete: str) -> list[str]:
    """Shipped tokenizer specs."""
    return [name for name in tokenizer_specs() if name.startswith(incomplete)]


def set_names(incomplete: str) -> list[str]:
    """Datasets."""
    return [name for name in DATASETS if name.startswith(incomplete)]


def _runs_dir(ctx: typer.Context) -> Any:
    return ctx.params.get("runs_dir")
