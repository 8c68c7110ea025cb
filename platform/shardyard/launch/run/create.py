"""Creating the folder of a run. Imports only the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.info import RunFields
from shardyard.tracking.run.plan_file import in_short, plan_json
from shardyard.tracking.run.reading import integer


def new_run(
    runs_dir: Path,
    name: str,
    *,
    recipe_text: str,
    resolved_text: str,
    plan: Mapping[str, object],
    run_id: str | None = None,
    fields: RunFields,
) -> RunFolder:
    """A new run folder in the state `pending`.

    Args:
        recipe_text: the recipe as given; resolved_text: with all defaults and derived values.
        plan: from `planning.plan_text.as_dict`, or as submitted with a job.
        run_id: if the id was chosen earlier.
        fields: further fields of run.json, such as `provenance`.

    Raises:
        RunFolderError: the name is not a folder name, the id is taken, or the runs folder is not writable.
    """
    world = plan.get("world")
    known: RunFields = {
        **fields,
        "total_steps": integer(plan.get("steps")),
        "world_size": integer(world.get("size")) if isinstance(world, Mapping) else None,
        "plan": in_short(plan),
    }
    return RunFolder.create(
        runs_dir, name, recipe_text, resolved_text, run_id=run_id, plan_text=plan_json(plan), **known
    )
