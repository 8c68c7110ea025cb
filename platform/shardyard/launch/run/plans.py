"""Preparing a run before it starts: its recipe, its plan, and their part of run.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shardyard.engine.checkpoint.files import (
    committed_checkpoints,
    committed_folder,
    newest_good_step,
    read_manifest,
    rewind,
)
from shardyard.errors import CheckpointError, UsageError
from shardyard.launch.run.create import new_run
from shardyard.launch.run.host import refuse_on_this_host
from shardyard.launch.run.initial import check_unchanged, for_planning, locate
from shardyard.launch.run.prepare import as_before, prepare
from shardyard.launch.run.world import cluster_address, world_of
from shardyard.planning.forecast.forecast import world_on
from shardyard.planning.forecast.hardware import Hardware
from shardyard.planning.plan import RunPlan
from shardyard.planning.plan_text import as_dict, resolved_text, rows
from shardyard.planning.search.search import Question
from shardyard.recipe.code import origins, with_absolute_files
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe, shown_path
from shardyard.recipe.schema import Recipe
from shardyard.recipe.shorten import as_trial
from shardyard.tracking.run.events import Notice, write_event
from shardyard.tracking.run.folder import RunFolder, typed
from shardyard.tracking.run.info import RunFields, WeightsInfo
from shardyard.tracking.run.plan_file import keep_plan
from shardyard.tracking.run.provenance import collect


@dataclass(frozen=True)
class PlannedRun:
    """A recipe ready to train.

    local: one rank in this process, without Ray.
    run_fields: further fields of run.json: `starting`, the located weights; `trial`, of a shortened run; `sweep`, of a
        trial of a sweep.
    measure: measure what each rank allocates (`engine/memory/`).
    """

    loaded: LoadedRecipe
    plan: RunPlan
    local: bool = False
    run_fields: RunFields = field(default_factory=RunFields)
    measure: bool = False

    def create(self, runs_dir: Path, command: Sequence[str] | None = None) -> RunFolder:
        """The folder of a new run.

        Args:
            command: what started it, for its provenance; by default the command line of this process.

        Raises:
            RunFolderError: it cannot be created.
        """
        recipe = self.loaded.recipe
        return new_run(
            runs_dir,
            recipe.name,
            recipe_text=self.loaded.text,
            resolved_text=resolved_text(recipe, self.plan),
            plan=as_dict(self.plan),
            fields={**self.run_fields, "provenance": collect(command, code=origins(recipe)), "local": self.local},
        )


def plan_new(loaded: LoadedRecipe, runs_dir: Path, *, local: bool = False, try_steps: int | None = None) -> PlannedRun:
    """Plan a recipe for a new run.

    Args:
        runs_dir: searched for `run:NAME`.
        try_steps: shorten the run to this many steps, and scale everything that depends on its length.

    Raises:
        ShardyardError: the recipe cannot be built, or its plan does not fit.
    """
    loaded = replace(loaded, recipe=with_absolute_files(loaded.recipe))
    loaded, initial_weights = with_initial_weights(loaded, runs_dir)
    run_fields: RunFields = {"starting": initial_weights} if initial_weights else {}
    gpus = cluster_gpus_of(loaded, local=local)
    plan = plan_of(loaded, local=local, gpus=gpus)
    if try_steps is not None:
        run_fields["trial"] = {"steps": try_steps, "of": plan.steps}
        loaded = replace(loaded, recipe=as_trial(loaded.recipe, try_steps, of=plan.steps))
        plan = plan_of(loaded, local=local, gpus=gpus)
    refuse_what_does_not_fit(plan)
    return PlannedRun(loaded, plan, local, run_fields)


def plan_resumed(
    folder: RunFolder,
    runs_dir: Path,
    overrides: Sequence[str] = (),
    *,
    local: bool = False,
    step: int | None = None,
    until: int | None = None,
) -> PlannedRun:
    """Plan a resumed run, with overrides written to its resolved.yaml. The caller holds its lease.

    Args:
        local: one rank in this process; always true for a run that began locally.
        step: reset the run to the checkpoint of this step, 0 to its start; later ones are set aside.
        until: where the run shall pause.

    Raises:
        UsageError: the initial weights have changed, the checkpoint does not exist or fits no such run, or the run is
            past `until`.
    """
    _refuse_past(folder, until, step)
    local = local or folder.info().local
    check_unchanged(folder)
    loaded = load_recipe(str(folder.resolved), [*as_before(folder), *overrides])
    if overrides:
        began = load_recipe(str(folder.resolved), as_before(folder))
        refuse_what_cannot_go_on(folder, began.recipe, loaded.recipe, step)
        loaded, _ = with_initial_weights(loaded, runs_dir)
    plan = plan_of(loaded, local=local, gpus=cluster_gpus_of(loaded, local=local))
    if step is not None:
        _go_back(folder, step)
    if overrides:
        keep_plan(folder, resolved_text(loaded.recipe, plan), as_dict(plan))
    return PlannedRun(loaded, plan, local)


def _refuse_past(folder: RunFolder, until: int | None, step: int | None) -> None:
    """Refuse a pause before the step from which the run goes on: it would train to the end."""
    reached = newest_good_step(folder.checkpoints) if step is None else step
    if until is not None and reached > until:
        where = f"{folder.path} goes on from its checkpoint of step {reached}"
        back = "" if step is not None else f" or go back first with --step N, where N is at most {until}"
        raise UsageError(f"--until {until}: {where}, which is later. Name a later step{back}.")


def refuse_what_cannot_go_on(folder: RunFolder, began: Recipe, recipe: Recipe, step: int | None) -> None:
    """Check that the states of a checkpoint can be read by the changed run.

    Stage, number of ranks and the sizes of all axes may change: states are read by parameter.

    Args:
        began: the recipe with which the run was planned before.
        step: of the checkpoint; None for the newest.

    Raises:
        UsageError: the checkpoint has another precision, or states of another optimizer.
    """
    committed = committed_checkpoints(folder.checkpoints)
    checkpoint = committed_folder(folder.checkpoints, step) if step else next(reversed(committed), None)
    if step == 0 or checkpoint is None or checkpoint not in committed:
        return
    try:
        written = read_manifest(checkpoint)["precision"]
    except CheckpointError:
        return  # The ranks skip a damaged one, and say so.
    changed = [
        ("train.precision", written, recipe.train.precision or written),
        ("optimizer.name", began.optimizer.name, recipe.optimizer.name),
    ]
    for field_, before, now in changed:
        if before != now:
            raise UsageError(
                f"{checkpoint.name} was written with {field_} {before}, and this run would have {now}: its optimizer "
                f"states are those of {before}. Leave {field_} as it was, or start a new run from its weights: "
                f"`shardyard export {typed(folder.path)} FOLDER`, then launch with `-s model.pretrained=FOLDER`."
            )


def _go_back(folder: RunFolder, step: int) -> None:
    """Make the checkpoint of `step` the newest, and log it as an event."""
    moved = ", ".join(path.name for path in rewind(folder.checkpoints, step)) or "nothing"
    text = f"going back to step {step} (--step); set aside in checkpoints/: {moved}"
    write_event(folder.events, Notice(text=text))


def plan_of(loaded: LoadedRecipe, *, local: bool = False, gpus: int | None = None, elsewhere: bool = False) -> RunPlan:
    """The plan of a recipe, with the measured sizes of the model.

    Args:
        local: one rank in this process.
        gpus: of the cluster, if known.
        elsewhere: for machines of a scheduler, which cannot be queried from here.

    Raises:
        RecipeError: the devices do not support the recipe.
    """
    settings = loaded.recipe.cluster
    world = world_of(settings, local=local, cluster_gpus=gpus, elsewhere=elsewhere)
    if local or not (elsewhere or cluster_address(settings)):
        refuse_on_this_host(loaded.recipe, gpu=world.gpu, source=shown_path(loaded.path))
    return prepare(loaded.recipe, world, remember=True)


def plan_on(loaded: LoadedRecipe, hardware: Hardware, *, device_bytes: int | None = None) -> RunPlan:
    """The plan of a recipe on named hardware, whatever this machine has; `loaded` has one worker for each GPU.

    Args:
        device_bytes: memory of a GPU, if it is not that of the table.

    Raises:
        RecipeError: the GPUs do not support the recipe, or cannot be arranged as it wants.
    """
    return prepare(loaded.recipe, world_on(hardware, device_bytes), remember=True)


def question_of(loaded: LoadedRecipe, plan: RunPlan, hardware: Hardware | None) -> Question:
    """What a search needs to know of a recipe and its plan."""
    return Question(loaded.recipe, plan, lambda recipe: plan.architecture, hardware)


def without_weights(loaded: LoadedRecipe, runs_dir: Path) -> LoadedRecipe:
    """The recipe with the paths of its initial weights, or with known sizes if they are not local."""
    return replace(loaded, recipe=for_planning(loaded.recipe, runs_dir))


def with_initial_weights(loaded: LoadedRecipe, runs_dir: Path) -> tuple[LoadedRecipe, dict[str, WeightsInfo]]:
    """The recipe with the paths of its initial weights, and their entry for run.json."""
    recipe, initial_weights = locate(loaded.recipe, runs_dir)
    return replace(loaded, recipe=recipe), initial_weights


def cluster_gpus_of(loaded: LoadedRecipe, *, local: bool) -> int | None:
    """GPUs of the named cluster; None if Ray is started by this process or not used."""
    if local or cluster_address(loaded.recipe.cluster) is None:
        return None
    # Imported late, because it imports Ray.
    from shardyard.launch.ray.cluster import cluster_gpus

    return cluster_gpus(loaded.recipe.cluster)


def report_findings(plan: RunPlan, folder: RunFolder) -> None:
    """Write an event for what the probes of the model found, where a user should know it."""
    texts = list(plan.architecture.findings.notices)
    if plan.isolation_matters:
        texts.insert(0, f"isolation {plan.isolation}: {plan.reasons['isolation']}")
    for text in texts:
        write_event(folder.events, Notice(text=text))


def refuse_what_does_not_fit(plan: RunPlan) -> None:
    """Check that the plan fits the device, if its memory is known.

    Raises:
        UsageError: it does not.
    """
    if plan.fits is False:
        verdict = list(rows(plan))[-1]
        raise UsageError(
            f"the plan needs {verdict[1]} a rank and {verdict[2]}. `shardyard plan RECIPE` shows the breakdown."
        )
