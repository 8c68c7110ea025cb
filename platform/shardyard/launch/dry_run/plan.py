"""Planning a dry run: the narrow recipe as a file, and its run, which measures memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shardyard.launch.dry_run.narrow_recipe import narrow_recipe
from shardyard.launch.run.plans import PlannedRun, plan_new
from shardyard.recipe.loading.load import LoadedRecipe, dump_recipe, load_recipe
from shardyard.tracking.files import write_atomically

FOLDER = "dry-runs"


@dataclass(frozen=True)
class DryRun:
    """A planned dry run, the runs folder for it, and in words what it trains."""

    run: PlannedRun
    runs_dir: Path
    text: str


def plan_dry_run(loaded: LoadedRecipe, ranks: int, runs_dir: Path) -> DryRun:
    """The run of a narrow copy of a recipe on `ranks` processes of this machine.

    The narrow recipe, its made-up data and weights are written to `RUNS/dry-runs/NAME/`, where `launch` takes them too.

    Raises:
        ShardyardError: no narrow copy can be made, or its rows cannot be made up.
    """
    runs = runs_dir / FOLDER
    folder = runs / loaded.recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    narrow = narrow_recipe(loaded.recipe, ranks, folder, runs_dir)
    path = folder / "recipe.yaml"
    write_atomically(path, dump_recipe(narrow.recipe))
    planned = plan_new(load_recipe(str(path)), runs)
    return DryRun(replace(planned, measure=True), runs, narrow.text)
