"""The job of a rank. Imports neither torch nor DeepSpeed, because drivers only pass it on."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """Plain data, so that it can be sent to workers.

    until: pause after this step, with a checkpoint.
    trust: load checkpoint files that may execute code.
    measure: measure what each rank allocates, and write it to the run folder.
    """

    recipe: Recipe
    plan: RunPlan
    folder: RunFolder
    until: int | None = None
    trust: bool = False
    measure: bool = False
