"""The search of `shardyard plan`: changes that make a recipe fit or go faster, each tried as -s overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from shardyard.cli.view import output
from shardyard.errors import RecipeError, UsageError
from shardyard.launch.run.plans import question_of, without_weights
from shardyard.planning.forecast.hardware import Hardware
from shardyard.planning.plan import RunPlan
from shardyard.planning.search import text
from shardyard.planning.search.search import Question, Way, front, holds, proposable, ranked_changes, ways
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.tracking.run.folder import runs_folder

# The front also has the halves of the GPUs, so often.
_HALVED = 3


def searched(
    loaded: LoadedRecipe, plan: RunPlan, hardware: Hardware | None, rate: float
) -> tuple[list[Way], list[tuple[str, str, str]]]:
    """The changes that make a plan fit or go faster, and their lines of text; of one that fits, only with `hardware`.

    Args:
        rate: tokens per second of `plan`; 0 if they are not forecast.
    """
    if hardware is None and plan.fits is not False:
        return [], []
    question = question_of(loaded, plan, hardware)
    found = ways(question)
    changes = [way for way in ranked_changes(question, found) if _holds(loaded, question, way)]
    if not proposable(found):
        return [], list(text.missing_rows(question, found))
    return changes, list(text.change_rows(plan, rate, changes))


def print_front(name: str, loaded: LoadedRecipe, plan: RunPlan, hardware: Hardware | None, *, as_json: bool) -> None:
    """Print the ways to train that no other one beats."""
    if hardware is None:
        raise UsageError("--search compares speeds: name the accelerator too, such as --gpu h100-80gb --gpus 64.")
    question = question_of(loaded, plan, hardware)
    found = [way for count in _counts(hardware) for way in ways(question, count)]
    kept = [way for way in front(question, found) if _holds(loaded, question, way)]
    if as_json:
        output.print_json([text.as_plain(way) for way in kept])
        return
    if not kept:
        output.print_table(("what", "value", ""), text.missing_rows(question, found), title=f"{name} does not fit")
        return
    output.print_table(text.FRONT_COLUMNS, text.front_rows(kept), title=f"ways to train {name}")
    output.note(text.front_note(found))


def on_gpus(hardware: Hardware) -> list[str]:
    """Overrides that give a recipe one worker on each GPU of `hardware`."""
    one_each = [f"cluster.workers={hardware.gpus}", "cluster.gpus_per_worker=1"]
    return [*one_each, f"cluster.workers_per_node={hardware.per_node}"] if hardware.nodes > 1 else one_each


def _counts(hardware: Hardware) -> Sequence[int]:
    """The GPUs, and halves of them that fill nodes."""
    halves = [hardware.gpus >> times for times in range(_HALVED + 1) if hardware.gpus % (1 << times) == 0]
    return [count for count in halves if count <= hardware.per_node or count % hardware.per_node == 0]


def _holds(loaded: LoadedRecipe, question: Question, way: Way) -> bool:
    """Whether the recipe, loaded with the overrides of a way, has the plan that the search promises."""
    hardware = question.hardware
    where: list[str] = []
    if hardware is not None:
        where = on_gpus(replace(hardware, gpus=way.gpus, per_node=min(hardware.per_node, way.gpus)))
    try:
        again = load_recipe(str(loaded.path), [*loaded.overrides, *where, *way.overrides])
        return holds(question, way, without_weights(again, runs_folder()).recipe)
    except RecipeError:
        return False
