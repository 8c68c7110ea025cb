"""`shardyard plan` and `shardyard explain RECIPE`: the derived values of a recipe and their reasons."""

from __future__ import annotations

from typing import Annotated

import typer

from shardyard.cli.options import AsJson, Overrides, RecipeName
from shardyard.cli.view import output
from shardyard.cli.view.mixture import mixture_lines
from shardyard.launch.run.plans import plan_of, without_weights
from shardyard.planning.plan import RunPlan
from shardyard.planning.plan_text import as_dict, rows
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.tracking.run.folder import runs_folder
from shardyard.units import format_count, parse_bytes


def plan(
    name: RecipeName,
    overrides: Overrides = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Device memory that the plan must fit, e.g. 80GiB.")
    ] = None,
    deepspeed: Annotated[bool, typer.Option("--deepspeed", help="Print the compiled DeepSpeed configuration.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the plan of a recipe: steps, batches, memory, FLOPs, and whether it fits."""
    extra = [f"cluster.memory_per_worker={_checked_size(memory)}"] if memory else []
    plan = _planned(load_recipe(name, [*(overrides or []), *extra]))
    if deepspeed:
        output.print_json(plan.deepspeed)
    elif as_json:
        output.print_json(as_dict(plan))
    else:
        output.print_table(("what", "value", ""), rows(plan), title=f"plan of {name}")
        for line in mixture_lines(plan, ascii_only=not output.has_utf8()):
            output.line(line)


def explain_recipe(loaded: LoadedRecipe) -> None:
    """Print each derived value of a recipe and its reason."""
    plan = _planned(loaded)
    values = {**as_dict(plan), "flops_per_token": format_count(plan.flops_per_token), "mesh": plan.mesh}
    table = [(name, str(values[name]), why) for name, why in sorted(plan.reasons.items())]
    output.print_table(("derived value", "", "why"), table, title=loaded.recipe.name)


def _planned(loaded: LoadedRecipe) -> RunPlan:

    return plan_of(without_weights(loaded, runs_folder()))


def _checked_size(text: str) -> str:
    try:
        parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from error
    return text
