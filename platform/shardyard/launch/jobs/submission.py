"""A job to submit, for any scheduler: a checked recipe, its plan, and the options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardyard.planning.plan import RunPlan
from shardyard.recipe.loading.load import LoadedRecipe

# Shows a line to the submitting user, such as "uploading 3 MiB".
Report = Callable[[str], None]


@dataclass(frozen=True)
class SubmitRequest:
    """A job to submit, for `submit(request, report) -> id of the job` of schedulers.

    name: recipe as given, a path or the name of a shipped one.
    overrides: `path.to.key=value`, as given.
    loaded, plan: the checked recipe and its plan.
    runs_dir: parent of the run folder, as the host of the job sees it.
    job_name: name of the job. Default: the recipe's name.
    dry_run: write what would be submitted to this file, and submit nothing.
    address: of the cluster, as given; None if it comes from the environment or `shardyard cluster up`.
    run_id: id of the run folder that the job creates or continues.
    resolved: text of the run's resolved.yaml; if empty, the dumped recipe.
    trial: `steps` of a short trial and those `of` the whole recipe, for run.json; None for a whole run.
    working_dir: folder with the files that the recipe names by relative path; uploaded with the job.
    """

    name: str
    overrides: tuple[str, ...]
    loaded: LoadedRecipe
    plan: RunPlan
    runs_dir: Path
    job_name: str
    dry_run: Path | None = None
    address: str | None = None
    run_id: str | None = None
    resolved: str = ""
    working_dir: Path | None = None
    trial: dict[str, int] | None = None
