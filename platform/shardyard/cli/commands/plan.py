"""`shardyard plan` and `shardyard explain RECIPE`: the derived values of a recipe and their reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.options import AsJson, Overrides, RecipeName
from shardyard.cli.view import output
from shardyard.cli.view.mixture import mixture_lines
from shardyard.errors import UsageError
from shardyard.extras import require
from shardyard.launch.mixture_plot import plot_mixture
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
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the mixture over the run: .svg, .png or .pdf.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the plan of a recipe: steps, batches, mixture, memory, FLOPs, and whether it fits."""
    extra = [f"cluster.memory_per_worker={_checked_size(memory)}"] if memory else []
    plan = _planned(load_recipe(name, [*(overrides or []), *extra]))
    if plot is not None:
        _plot(plan, plot)
    if deepspeed:
        output.print_json(plan.deepspeed)
    elif as_json:
        output.print_json(as_dict(plan))
    else:
        output.print_table(("what", "value", ""), rows(plan), title=f"plan of {name}")
        for line in mixture_lines(plan, ascii_only=not output.has_utf8()):
            output.line(line)


def _plot(plan: RunPlan, path: Path) -> None:
    if len(plan.sources) < 2:
        raise UsageError("--plot draws a mixture, and the recipe has one source.")
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise typer.BadParameter(f"{path} must end in .svg, .png or .pdf", param_hint="--plot")
    require("sweep", "the figure of a mixture", "matplotlib")
    try:
        plot_mixture(plan, path)
    except OSError as error:
        raise UsageError(f"the figure cannot be written to {path}: {error.strerror or error}") from error
    output.note(f"plot: {path}")


def explain_recipe(loaded: LoadedRecipe) -> None:
    """Print each derived value of a recipe and its reason."""
    plan = _planned(loaded)
    values = {**as_dict(plan), "flops_per_token": format_count(plan.flops_per_token), "mesh": plan.mesh}
    # Some reasons are of no derived value, such as the layout of the data.
    table = [(name, str(values.get(name, "")), why) for name, why in sorted(plan.reasons.items())]
    output.print_table(("derived value", "", "why"), table, title=loaded.recipe.name)


def _planned(loaded: LoadedRecipe) -> RunPlan:

    return plan_of(without_weights(loaded, runs_folder()))


def _checked_size(text: str) -> str:
    try:
        parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from error
    return text
