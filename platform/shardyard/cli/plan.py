"""`shardyard plan` and `shardyard explain RECIPE`: what a recipe would do, and why, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from shardyard.cli import output
from shardyard.cli.options import AsJson, Overrides, RecipeName
from shardyard.recipe.load import LoadedRecipe, load_recipe
from shardyard.recipe.plan import RunPlan
from shardyard.units import format_bytes, format_count, parse_bytes


def plan(
    name: RecipeName,
    overrides: Overrides = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory of a device to fit, e.g. 80GiB.")
    ] = None,
    deepspeed: Annotated[bool, typer.Option("--deepspeed", help="Print the compiled DeepSpeed configuration.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would do: steps, batches, memory, FLOPs, and whether it fits."""
    extra = [f"cluster.memory_per_worker={_checked_size(memory)}"] if memory else []
    made = plan_of(_located(load_recipe(name, [*(overrides or []), *extra])))
    if deepspeed:
        output.print_json(made.deepspeed)
    elif as_json:
        output.print_json(as_dict(made))
    else:
        output.print_table(("what", "value", ""), rows(made), title=f"plan of {name}")


def explain_recipe(loaded: LoadedRecipe) -> None:
    """Print each derived value of a recipe and why it is what it is."""
    made = plan_of(_located(loaded))
    values = {**as_dict(made), "flops_per_token": format_count(made.flops_per_token)}
    table = [(name, str(values[name]), why) for name, why in sorted(made.reasons.items())]
    output.print_table(("derived value", "", "why"), table, title=loaded.recipe.name)


def _located(loaded: LoadedRecipe) -> LoadedRecipe:
    """With the paths of the weights it starts from, or their known sizes where they are not here."""
    from shardyard.launch.starting import for_planning
    from shardyard.tracking.runfolder import runs_folder

    return replace(loaded, recipe=for_planning(loaded.recipe, runs_folder()))


def plan_of(loaded: LoadedRecipe, *, local: bool = False, gpus: int | None = None) -> RunPlan:
    """The plan of a recipe, with the model's sizes counted; `gpus` are those of the cluster, if it was asked."""
    from shardyard.launch.hardware import world_of
    from shardyard.launch.prepare import prepare

    return prepare(loaded.recipe, world_of(loaded.recipe.cluster, local=local, cluster_gpus=gpus), remember=True)


def as_dict(plan: RunPlan) -> dict[str, Any]:
    """The plan as plain data, with its totals."""
    totals = {"tokens": plan.tokens, "flops": plan.flops, "fits": plan.fits}
    return asdict(plan) | totals | {"device_bytes": plan.memory.device_bytes}


def rows(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    """What the plan says, as lines for people: name, value, why."""
    why = plan.reasons
    size, memory = plan.architecture, plan.memory
    yield "parameters", format_count(size.parameters), f"{format_count(size.matmul_parameters)} multiply each token"
    if size.trainable_parameters is not None:
        share = size.trainable_parameters / size.parameters
        yield "trainable", format_count(size.trainable_parameters), f"{share:.2%} of the model's parameters"
    yield "world size", str(plan.world.size), "GPUs" if plan.world.gpu else "CPU ranks"
    yield "each worker", plan.bundle, why["bundle"]
    yield "placement", plan.placement, why["placement"]
    yield "network", plan.network, why["network"]
    yield "micro-batch", str(plan.micro_batch), why["micro_batch"]
    yield "accumulation", str(plan.accumulation), why["accumulation"]
    yield "tokens a step", format_count(plan.tokens_per_step), why["tokens_per_step"]
    yield "steps", str(plan.steps), why["steps"]
    yield "tokens", format_count(plan.tokens), f"{plan.tokens / size.parameters:.1f} a parameter"
    yield "FLOPs a token", format_count(plan.flops_per_token), why["flops_per_token"]
    yield "FLOPs", format_count(plan.flops), "tokens × FLOPs a token"
    yield "lanes", str(plan.lanes), why["lanes"]
    yield "evaluation", f"every {plan.evaluate_every} steps", why["evaluate_every"]
    yield "checkpoint", f"every {plan.checkpoint_every} steps", why["checkpoint_every"]
    for name, value in asdict(memory).items():
        if value:
            yield f"memory: {name.removesuffix('_bytes')}", format_bytes(value), ""
    yield "memory a rank", format_bytes(memory.device_bytes), _verdict(plan)


def _verdict(plan: RunPlan) -> str:
    if plan.world.device_bytes is None:
        return "the device's memory is not known; give --memory 80GiB to compare"
    have = format_bytes(plan.world.device_bytes)
    if plan.fits:
        return f"fits {have}"
    return f"does not fit {have}: a higher ZeRO stage, more workers, offloading or activation checkpointing help"


def _checked_size(text: str) -> str:
    try:
        parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from error
    return text
