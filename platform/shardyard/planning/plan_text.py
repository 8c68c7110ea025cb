"""A plan as plain data, as text, and as the comments of a run's resolved.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter

from shardyard.planning.plan import RunPlan, fixed
from shardyard.recipe.loading.load import dump_recipe
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes, format_count, format_seconds


def as_dict(plan: RunPlan) -> dict[str, object]:
    """The plan as plain data, with its totals."""
    totals = {"tokens": plan.tokens, "flops": plan.flops, "fits": plan.fits}
    return asdict(plan) | totals | {"device_bytes": plan.memory.device_bytes}


def from_dict(found: Mapping[str, Any]) -> RunPlan:
    """The inverse of `as_dict`.

    Raises:
        ValueError: `found` is not a plan, or comes from a version of Shardyard with other fields.
    """
    names = {field.name for field in fields(RunPlan)}
    if "mesh" not in found:
        found = {**found, "mesh": _mesh_before(found)}
    plan = TypeAdapter(RunPlan).validate_python({name: value for name, value in found.items() if name in names})
    if missing := _REASONS - plan.reasons.keys():
        raise ValueError(f"the plan lacks the reasons of {', '.join(sorted(missing))}")
    return plan


def _mesh_before(found: Mapping[str, Any]) -> dict[str, Any]:
    """The mesh of a plan written before plans had meshes, when experts were the only axis besides data."""
    try:
        ranks = found["world"]["size"]
        expert = found["deepspeed"].get("expert_parallel", {}).get("autoep_size", 1)
        return {"axes": (("expert_data", ranks // expert), ("expert", expert))}
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError("it is no plan") from error


# The format of `rows`.
_REASONS = frozenset(
    ("bundle", "placement", "network", "precision", "micro_batch", "accumulation", "tokens_per_step", "steps")
) | {"flops_per_token", "streams", "warmup", "evaluate_every", "checkpoint_every"}


def rows(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    """The plan as lines of text: name, value, reason."""
    why = plan.reasons
    size, memory = plan.architecture, plan.memory
    yield "parameters", format_count(size.parameters), f"{format_count(size.matmul_parameters)} multiply each token"
    if size.trainable_parameters is not None:
        share = size.trainable_parameters / size.parameters
        yield "trainable", format_count(size.trainable_parameters), f"{share:.2%} of the model's parameters"
    if size.pretrained_vocabulary is not None:
        grown = size.pretrained_vocabulary < size.vocabulary
        how = "new rows begin as the mean of the others" if grown else "the last rows are left out"
        yield "embeddings", f"{size.pretrained_vocabulary} → {size.vocabulary} rows", how
    if size.adapted:
        yield "adapters on", size.adapted, ""
    if size.left_out:
        yield "without adapter", size.left_out, ""
    yield "world size", str(plan.world.size), ("GPUs" if plan.world.gpu else "CPU ranks") + why.get("sizes", "")
    if plan.mesh.world > plan.mesh.data or plan.mesh.expert > 1:
        yield "mesh", str(plan.mesh), why.get("mesh", "")
    yield "each worker", plan.bundle, why["bundle"]
    yield "placement", plan.placement, why["placement"]
    yield "network", plan.network, why["network"]
    if "layout" in why:
        yield "data layout", why["layout"], "recognised by the columns; data.train.….columns chooses another"
    if "answers" in why:
        trained, _, explained = why["answers"].partition(": ")
        yield "trained answers", trained, explained
    if "tokenized" in why:
        yield "documents", "as tokens", why["tokenized"]
    yield "precision", plan.precision, why["precision"]
    if plan.isolation_matters:
        yield "isolation", str(plan.isolation), why["isolation"]
    if "packing" in why:
        yield "packing", "best_fit", why["packing"]
    yield "micro-batch", str(plan.micro_batch), why["micro_batch"]
    if plan.logits_chunk:
        yield "logits", f"of {plan.logits_chunk} tokens at a time", why["logits_chunk"]
    if "optimizer" in why:
        name, _, explained = why["optimizer"].partition(": ")
        yield "optimizer", name, explained
    if "z_loss" in why:
        weighted, _, explained = why["z_loss"].partition(": ")
        yield "z-loss", weighted, explained
    if plan.recomputed is not None and plan.recomputed.mode != "none":
        yield "recomputed", str(plan.recomputed), why["recomputed"]
    yield "accumulation", str(plan.accumulation), why["accumulation"]
    yield "tokens a step", format_count(plan.tokens_per_step), why["tokens_per_step"]
    yield "steps", str(plan.steps), why["steps"]
    yield "tokens", format_count(plan.tokens), f"{plan.tokens / size.parameters:.1f} a parameter"
    yield from _mixture(plan)
    yield "FLOPs a token", format_count(plan.flops_per_token), why["flops_per_token"]
    yield "FLOPs", format_count(plan.flops), "tokens × FLOPs a token"
    yield "streams", str(plan.streams), why["streams"]
    if "readers" in why:
        yield "readers", f"{plan.readers} a rank", why["readers"]
    yield "warm-up", f"{plan.warmup} steps", why["warmup"]
    yield "evaluation", f"every {plan.evaluate_every} steps", why["evaluate_every"]
    every = f"{plan.checkpoint_every} steps"
    if plan.checkpoint_seconds is not None:
        every = format_seconds(plan.checkpoint_seconds)
    yield "checkpoint", f"every {every}", why["checkpoint_every"]
    if "background" in why:
        yield "written", "beside training" if plan.background else "between two steps", why["background"]
    for notice in size.findings.notices:
        yield "notice", notice, ""
    for name, value in asdict(memory).items():
        if value and name != "swapped_bytes":
            yield f"memory: {name.removesuffix('_bytes')}", format_bytes(value), why.get(name, "")
    if memory.swapped_bytes:
        each = format_bytes(memory.swapped_bytes)
        yield "disk a rank", each, "optimizer states and gradients in fp32, in files of zero.nvme_path"
        yield "disk traffic", f"{each} read, {each} written", "by each rank in every step"
    yield "memory a rank", format_bytes(memory.device_bytes), _verdict(plan)


def _mixture(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    """The sources of a mixture, and the stages."""
    expected = sum(source.total for source in plan.sources)
    for source in plan.sources:
        share = source.total / expected if expected else 0.0
        yield f"source {source.name}", f"{share:.1%}, {format_count(source.total)} tokens", source.limits
    for number, stage in enumerate(plan.stages):
        own = [(source.name, source.tokens[number]) for source in plan.sources]
        total = sum(tokens for _, tokens in own)
        mixed = (
            ", ".join(f"{name} {tokens / total:.0%}" for name, tokens in own if tokens) if total else "no source left"
        )
        named = "" if stage.name == f"stage {number + 1}" else f" ({stage.name})"
        yield (
            f"stage {number + 1}{named}",
            f"steps {stage.begin + 1} to {stage.end}, {format_count(stage.tokens)} tokens",
            f"{stage.global_batch} rows × {stage.tokens_per_row} tokens a step; {mixed}",
        )


_UNKNOWN_GPUS = "unchecked: the memory of the GPUs is not known here; --gpu h100-80gb or --memory 80GiB checks it"


def _verdict(plan: RunPlan) -> str:
    if plan.world.device_bytes is None:
        return _UNKNOWN_GPUS if plan.world.gpu else "the device memory is not known; pass --memory 80GiB to compare"
    have = format_bytes(plan.world.device_bytes)
    if plan.fits:
        return f"fits {have}"
    return f"does not fit {have}: a higher ZeRO stage, more workers, offloading or activation checkpointing help"


def resolved_text(recipe: Recipe, plan: RunPlan) -> str:
    """The recipe with every default and fixed value, followed by the derived values as comments."""
    derived = "\n".join(f"# {what}: {value}{f'  ({why})' if why else ''}" for what, value, why in rows(plan))
    return f"{dump_recipe(fixed(recipe, plan))}\n# Derived:\n{derived}\n"
