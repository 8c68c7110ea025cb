"""plan.json: the numbers of a run's plan with their reasons; storing a changed plan.

Imports only the standard library, because the entry points of waiting jobs import it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from shardyard.tracking.files import encode, write_atomically
from shardyard.tracking.run.folder import RunFolder, unwritable
from shardyard.tracking.run.info import FORMAT, PlanInfo

# Keys that run.json omits: plan.json has the reasons, and ranks compile the configuration.
_NOT_IN_RUN_JSON = ("reasons", "deepspeed", "format")


def plan_json(plan: Mapping[str, object]) -> str:
    """The text of plan.json; `plan` comes from `planning.plan_text.as_dict`, or from a job file."""
    return json.dumps(json.loads(encode({"format": FORMAT, **plan})), indent=2, ensure_ascii=False) + "\n"


def in_short(plan: Mapping[str, object]) -> PlanInfo:
    """The part of a plan for run.json, so that listing runs reads one file per run."""
    return cast("PlanInfo", {name: value for name, value in plan.items() if name not in _NOT_IN_RUN_JSON})


def keep_plan(folder: RunFolder, resolved_text: str, plan: Mapping[str, object]) -> None:
    """Write the recipe and plan of a run: resolved.yaml, plan.json, and the plan in run.json.

    Raises:
        RunFolderError: the folder cannot be written.
        TakenOverError: another process has taken over the run.
    """
    folder.check_held()
    try:
        write_atomically(folder.resolved, resolved_text)
        write_atomically(folder.plan, plan_json(plan))
    except OSError as error:
        raise unwritable(folder.path, error) from error
    short = in_short(plan)
    folder.update(total_steps=short.get("steps"), plan=short)
