"""The job of a rank. Imports neither torch nor DeepSpeed, because drivers only pass it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder


@dataclass(frozen=True)
class Restart:
    """What the driver knows of the delay of an attempt after a failure.

    times: in seconds since 1970: `last_step` recorded before the failure, `failed` (noticed), `ended` (processes),
        `waited` (for the policy, a queue or resources), `placed` (new processes), `imported`, `joined`.
    spares: whether processes that waited took the places of the ranks.
    """

    times: Mapping[str, float]
    spares: bool = False


@dataclass(frozen=True)
class Job:
    """Plain data, so that it can be sent to workers.

    until: pause after this step, with a checkpoint.
    trust: load checkpoint files that may execute code.
    measure: measure what each rank allocates, and write it to the run folder.
    restart: of an attempt after a failure.
    """

    recipe: Recipe
    plan: RunPlan
    folder: RunFolder
    until: int | None = None
    trust: bool = False
    measure: bool = False
    restart: Restart | None = None
