"""The driver of a submitted job: one attempt, with the submitted plan. Started by the job's entry point."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shardyard.errors import ShardyardError
from shardyard.imports import import_at_once
from shardyard.launch.jobs.spec import JobSpec, new_run_id, plan_in, read_spec, spec_of, write_spec
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.jobs.view import JobView
from shardyard.launch.run.ending import ending_lines
from shardyard.launch.run.initial import check_unchanged
from shardyard.launch.run.plans import PlannedRun, cluster_gpus_of, plan_of, with_initial_weights
from shardyard.launch.run.prepare import recipe_in
from shardyard.launch.run.process import EXIT_CODES, give_over
from shardyard.launch.run.signals import StopSignals, note, stoppable
from shardyard.planning.plan import RunPlan, make_plan
from shardyard.planning.plan_text import resolved_text
from shardyard.recipe.code import origins, with_file_names
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.code import keep_code, store_code
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.lease import Lease
from shardyard.tracking.run.provenance import collect


def main(arguments: Sequence[str]) -> int:
    """Run one attempt with the arguments `SPEC RUN_FOLDER`; returns its exit code."""
    # Before training there is nothing to save, so Ctrl-C ends the process, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if arguments[0] == "--make-spec":
            return make_spec(*arguments[1:])
        return stoppable(lambda signals: attempt(Path(arguments[0]), RunFolder(arguments[1]), signals))
    except ShardyardError as error:
        note(f"Error: {error}")
        return error.exit_code


# Sections that affect neither the model's sizes nor its devices.
_WITHOUT_SIZE = frozenset(("train", "optimizer", "schedule", "checkpoint", "evaluate", "sample", "tracking", "job"))


def attempt(spec_path: Path, folder: RunFolder, signals: StopSignals) -> int:
    """Train in a run folder from its newest checkpoint.

    Raises:
        ShardyardError: the run failed.
    """
    with Lease.take(folder, report=note) as lease:
        # A stop request to an earlier attempt; the entry point repeats it if it is still valid.
        folder.clear_stop()
        signals.attach(folder)
        return _attempt(spec_path, folder, signals, lease)


def _attempt(spec_path: Path, folder: RunFolder, signals: StopSignals, lease: Lease) -> int:
    import_at_once("shardyard.launch.run.driver")
    spec, info = read_spec(spec_path), folder.info()
    store_code(spec.get("code", {}), folder)
    loaded = _loaded(spec, folder)
    loaded = replace(loaded, recipe=keep_code(loaded.recipe, folder))
    if names_weights(loaded.recipe):
        check_unchanged(folder)
        loaded, initial_weights = with_initial_weights(loaded, Path(spec["runs_dir"]))
        folder.update(starting=initial_weights)
    if not info.provenance.get("packages"):
        folder.update(provenance=collect(code=origins(loaded.recipe)))
    plan = _plan(spec, loaded)
    outcome = give_over(PlannedRun(loaded, plan), folder, signals, lease, view=JobView)
    for line in ending_lines(folder, outcome):
        sys.stdout.write(f"{line}\n")
    return EXIT_CODES[outcome]


def names_weights(recipe: Recipe) -> bool:
    """Whether a recipe starts from weights or a tokenizer that must be located on the host where it runs."""
    teacher = recipe.distillation.teacher if recipe.distillation is not None else None
    return recipe.model.pretrained is not None or teacher is not None or os.sep in (recipe.tokenizer or "")


def make_spec(recipe: str, run_id: str, runs_dir: str, path: str) -> int:
    """Write the job file for a recipe on this host, for schedulers that only know the recipe."""
    loaded = load_recipe(recipe)
    plan = plan_of(loaded, elsewhere=True)
    request = SubmitRequest(
        name=recipe,
        overrides=(),
        loaded=loaded,
        plan=plan,
        runs_dir=Path(runs_dir),
        job_name=loaded.recipe.name,
        run_id=run_id or new_run_id(loaded.recipe.name),
        resolved=resolved_text(loaded.recipe, plan),
    )
    write_spec(spec_of(request), Path(path))
    return 0


def _loaded(spec: JobSpec, folder: RunFolder) -> LoadedRecipe:
    """The recipe of the run: its resolved.yaml, which earlier attempts and `resume -s` may have changed."""
    recipe = recipe_in(folder)
    return LoadedRecipe(recipe, folder.recipe, spec["recipe_text"], tuple(spec["overrides"]), (folder.recipe,))


def _of_one_size(recipe: Recipe, other: Recipe) -> bool:
    """Whether two recipes have the same model sizes and the same devices."""
    changed = {name for name in Recipe.model_fields if getattr(recipe, name) != getattr(other, name)}
    return changed <= _WITHOUT_SIZE


def _plan(spec: JobSpec, loaded: LoadedRecipe) -> RunPlan:
    """The submitted plan, as far as it is still valid; else a new one."""
    plan, submitted = plan_in(spec), with_file_names(Recipe.model_validate(spec["recipe"]))
    recipe = with_file_names(loaded.recipe)
    if plan is not None and recipe == submitted:
        return plan
    if plan is not None and _of_one_size(recipe, submitted):
        return make_plan(loaded.recipe, plan.architecture, plan.world)
    return plan_of(loaded, gpus=cluster_gpus_of(loaded, local=False))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
