"""`shardyard plan` and `shardyard explain RECIPE`: the derived values of a recipe and their reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.options import AsJson, Overrides, RecipeName
from shardyard.cli.view import complete, output
from shardyard.cli.view.mixture import mixture_lines
from shardyard.cli.view.plan_search import on_gpus, print_front, searched
from shardyard.errors import UsageError
from shardyard.extras import require
from shardyard.launch.mixture_plot import plot_mixture
from shardyard.launch.run.plans import plan_of, plan_on, without_weights
from shardyard.planning.forecast.forecast import Forecast, forecast
from shardyard.planning.forecast.hardware import Hardware, hardware_of
from shardyard.planning.forecast.text import as_plain, forecast_rows
from shardyard.planning.plan import RunPlan
from shardyard.planning.plan_text import as_dict, rows
from shardyard.planning.search.text import as_plain as plain_way
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.tracking.run.folder import runs_folder
from shardyard.units import format_count, parse_bytes

Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, metavar="N", help="GPUs of --gpu; by default cluster.workers.")
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        autocompletion=complete.accelerators,
        help="Plan for this accelerator and forecast its speed, e.g. h100-80gb.",
    ),
]
PerNode = Annotated[
    int | None, typer.Option("--per-node", min=1, metavar="N", help="GPUs of a node; by default 8, or the recipe's.")
]
Between = Annotated[
    str | None, typer.Option("--network", metavar="NAME", help="Network cards of a node, e.g. 400gx8, or dgx-h100.")
]
Search = Annotated[
    bool, typer.Option("--search", help="Try other ways to train on those GPUs, and show those that none beats.")
]
Price = Annotated[float | None, typer.Option("--price", min=0.0, metavar="P", help="Price of a GPU-hour.")]


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
    gpus: Gpus = None,
    gpu: Gpu = None,
    per_node: PerNode = None,
    network: Between = None,
    price: Price = None,
    search: Search = False,
) -> None:
    """Show the plan of a recipe: steps, batches, mixture, memory, FLOPs, and whether it fits. With --gpu and --gpus, on
    those GPUs: its speed, time, energy and cost too, and what would make it fit or go faster."""
    given = overrides or []
    extra = [f"cluster.memory_per_worker={_checked_size(memory)}"] if memory else []
    found: Forecast | None = None
    hardware: Hardware | None = None
    if gpu is None:
        _refuse_without_gpu(gpus=gpus, per_node=per_node, network=network, price=price)
        loaded = without_weights(load_recipe(name, [*given, *extra]), runs_folder())
        plan = plan_of(loaded)
    else:
        workers = [] if gpus is None else [f"cluster.workers={gpus}"]
        hardware = _hardware(load_recipe(name, [*given, *workers]), gpu, gpus, per_node, network, price)
        loaded = without_weights(load_recipe(name, [*given, *on_gpus(hardware)]), runs_folder())
        plan = plan_on(loaded, hardware, device_bytes=parse_bytes(memory) if memory else None)
        found = forecast(loaded.recipe, plan, hardware)
    if plot is not None:
        _plot(plan, plot)
    if search:
        print_front(name, loaded, plan, hardware, as_json=as_json)
        return
    if deepspeed:
        output.print_json(plan.deepspeed)
        return
    changes, lines = searched(loaded, plan, hardware, found.tokens_per_second if found is not None else 0.0)
    if as_json:
        forecasts = {"forecast": as_plain(found)} if found is not None else {}
        output.print_json(as_dict(plan) | forecasts | {"changes": [plain_way(way) for way in changes]})
    else:
        shown = [*rows(plan), *(forecast_rows(found, plan) if found is not None else []), *lines]
        output.print_table(("what", "value", ""), shown, title=f"plan of {name}")
        for line in mixture_lines(plan, ascii_only=not output.has_utf8()):
            output.line(line)


def _hardware(
    loaded: LoadedRecipe, gpu: str, gpus: int | None, per_node: int | None, network: str | None, price: float | None
) -> Hardware:
    """The hardware of the options; where they leave it open, with as many GPUs as the recipe has workers."""
    settings = loaded.recipe.cluster
    return hardware_of(
        gpu,
        gpus or settings.workers,
        per_node=per_node or settings.workers_per_node,
        network=network,
        price=price,
    )


def _refuse_without_gpu(**given: object) -> None:
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if named:
        raise UsageError(f"{', '.join(named)}: name the accelerator too, such as --gpu h100-80gb.")


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
