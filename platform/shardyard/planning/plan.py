"""The plan: everything that follows from a recipe and a world, computed before anything starts.

Pure arithmetic. Workers receive a `RunPlan`; `RunPlan.reasons` explains each derived value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from shardyard.errors import Problem, RecipeError
from shardyard.objectives.registry import objective_spec
from shardyard.planning.architecture import Architecture, flops_per_token
from shardyard.planning.deepspeed_config import deepspeed_config
from shardyard.planning.findings import Findings, with_findings
from shardyard.planning.memory import Memory, estimate_memory
from shardyard.planning.micro_batch import batch_on, refusal, row_tokens, rows_per_rank, with_logits_chunk
from shardyard.planning.placement import bundle_in_words, demand_of, network_in_words, placement_in_words
from shardyard.planning.readers import cpus_of, readers_of
from shardyard.planning.recomputation import Recomputed, recomputation, with_recomputed
from shardyard.planning.saving import background_of
from shardyard.planning.sources import SourcePlan, source_plans
from shardyard.planning.stages import StagePlan, placed
from shardyard.recipe.batching import default_streams, streams_of
from shardyard.recipe.isolation import ISOLATIONS, Isolation, is_packed
from shardyard.recipe.layouts import recognised
from shardyard.recipe.lengths import in_steps
from shardyard.recipe.mesh import MeshShape, mesh_shape
from shardyard.recipe.mixture.stages import Span, StageOrderError, spans_of, stage_recipes, stage_weights
from shardyard.recipe.mixture.weights import lacks_sizes
from shardyard.recipe.precision import Bf16, choose_precision, with_precision
from shardyard.recipe.rules.sizes import sizes_of
from shardyard.recipe.schema import Precision, Recipe
from shardyard.recipe.sections.eight_bits import EIGHT_BITS
from shardyard.units import format_count, parse_seconds

# What a way to isolate documents means for the rows, after the reason for it.
_EIGHT_BITS = "2 bytes a weight and a scale for each 256, by bitsandbytes; resumes at the same ranks and ZeRO stage"
_HINTS: dict[Isolation, str] = {
    "positions": "",
    "mask": "; so each row gets a mask of its documents",
    "rows": "; so each row has one document, cut at data.sequence_length or padded to it: short documents "
    "leave a part of it empty",
}


@dataclass(frozen=True)
class World:
    """The ranks of a run: `size` in total, all on GPUs or all on CPUs.

    device_bytes: memory of each device, if known.
    bf16: whether the devices that train (not the planning machine) have bf16 units.
    host_bytes: memory of the host, if all ranks are on one whose memory is known.
    """

    size: int
    gpu: bool
    device_bytes: int | None = None
    bf16: Bf16 = field(default_factory=Bf16)
    host_bytes: int | None = None


@dataclass(frozen=True)
class RunPlan:
    """Derived values of one run. A row is a sequence of `tokens_per_row` tokens (patches for images).

    mesh: how the ranks of `world` are arranged.
    rows_per_rank: rows of a global batch that a data-parallel rank reads.
    stages: of a recipe that has some, the first one too; other fields of a step are then those of the first stage.
    sizes: of the sources, for data.temperature; none without it. sources: of a mixture.
    logits_chunk: `model.logits_chunk`; None in plans from before it existed.
    recomputed: the activation checkpointing; None in plans from before a plan chose it.
    isolation: what keeps the documents of a row apart; None if rows have one document, or need not keep them apart.
    background: whether checkpoints are written beside training, if the hosts have the memory.
    readers: those of each rank that make its rows, where a host has the cores.
    precision_known: False if the training devices could not be queried; the launch queries them and plans again.
    """

    world: World
    mesh: MeshShape
    precision: Precision
    precision_known: bool
    rows_per_rank: int
    micro_batch: int
    accumulation: int
    steps: int
    tokens_per_row: int
    tokens_per_step: int
    streams: int
    warmup: int
    evaluate_every: int
    checkpoint_every: int
    record_every: int
    architecture: Architecture
    flops_per_token: float
    memory: Memory
    deepspeed: dict[str, object]
    bundle: str
    placement: str
    network: str
    reasons: dict[str, str]
    isolation: Isolation | None = None
    # Time between two checkpoints; None where `checkpoint_every` counts steps. With a time, that is all steps.
    checkpoint_seconds: float | None = None
    logits_chunk: int | None = None
    recomputed: Recomputed | None = None
    stages: tuple[StagePlan, ...] = ()
    sizes: tuple[float | None, ...] = ()
    readers: int = 0
    sources: tuple[SourcePlan, ...] = ()
    background: bool = False

    @property
    def stage_tokens(self) -> list[int]:
        """Tokens of each stage, of which there is at least one."""
        return [one.tokens for one in self.stages] or [self.tokens]

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.tokens_at(self.steps)

    def tokens_at(self, step: int) -> int:
        """Tokens of the first `step` steps."""
        if not self.stages:
            return step * self.tokens_per_step
        return sum(min(max(0, step - one.begin), one.steps) * one.tokens_per_step for one in self.stages)

    def stage_at(self, step: int) -> StagePlan | None:
        """The stage of step `step`, counted from 1; None without stages."""
        return next((one for one in reversed(self.stages) if step > one.begin), None)

    @property
    def isolation_matters(self) -> bool:
        """Whether documents are kept apart in another way than usual, or see each other."""
        found = self.architecture.findings
        leaks = found.isolation_why != "" and found.isolation != "positions"
        return self.isolation is not None and (self.isolation != "positions" or leaks)

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        if self.stages:
            return sum(one.flops_per_token * one.tokens for one in self.stages)
        return self.flops_per_token * self.tokens

    @property
    def fits(self) -> bool | None:
        """Whether the estimate fits the device; None if the memory of the device is unknown."""
        if self.world.device_bytes is None:
            return None
        return self.memory.device_bytes <= self.world.device_bytes


def make_plan(recipe: Recipe, architecture: Architecture, world: World, *, rows: int | None = None) -> RunPlan:
    """Derive all values.

    Args:
        rows: number of rows of one pass over the training data; required for `train.epochs`.

    Raises:
        RecipeError: the world cannot be split into the recipe's axes, its data-parallel ranks do not divide the batch
            or the streams, or its ranks would share a GPU. The recipe's own `cluster.workers` has been checked before;
            this check is for other worlds. Or `checkpoint.background` is asked for, and memory lacks the room.
    """
    reasons: dict[str, str] = {}
    _check_findings(recipe, architecture.findings)
    isolation = _isolation(recipe, architecture.findings, reasons)
    recipe = with_findings(recipe, architecture.findings)
    chosen = choose_precision(recipe.train.precision, world.bf16, gpu=world.gpu)
    recipe = with_precision(recipe, chosen.precision)
    reasons["precision"] = chosen.why
    mesh = mesh_shape(recipe, world.size)
    reasons["mesh"] = _mesh_reason(recipe, mesh)
    if recipe.cluster.min_workers is not None:
        smaller = [str(size) for size in sizes_of(recipe) if size != world.size]
        reasons["sizes"] = f"; with the same global batches also on {', '.join(smaller) or 'no others'}"
    rank_rows = rows_per_rank(recipe, mesh)
    _check_shared_gpus(recipe, world)
    if recipe.optimizer.name in EIGHT_BITS:
        reasons["optimizer"] = f"{recipe.optimizer.name}: {_EIGHT_BITS}"
    if recipe.loss.z_loss:
        reasons["z_loss"] = f"{recipe.loss.z_loss:g} × mean (log Z)²: of target tokens, beside their loss, in training"
    reasons["rows_per_rank"] = f"{recipe.train.global_batch} rows / {mesh.data} ranks"
    fitting = batch_on(recipe, architecture, mesh, world.device_bytes, gpu=world.gpu)
    parts = stage_recipes(recipe)
    later = [batch_on(part, architecture, mesh, world.device_bytes, gpu=world.gpu) for part in parts[1:]]
    micro_batch = fitting.micro_batch
    # Where the rows of a stage need it, all stages have it.
    chunked = max([fitting, *later], key=lambda one: one.logits_chunk)
    again = max([fitting, *later], key=lambda one: one.recomputed.share)
    reasons |= {**fitting.reasons, "logits_chunk": chunked.reasons["logits_chunk"]}
    recipe = with_recomputed(with_logits_chunk(recipe, chunked.logits_chunk), again.recomputed)
    reasons["recomputed"] = again.reasons.get("recomputed") or recomputation(recipe, architecture)
    parts = stage_recipes(recipe)
    accumulation = rank_rows // micro_batch
    reasons["accumulation"] = f"{rank_rows} rows a rank / micro-batch of {micro_batch}"
    tokens_per_row = row_tokens(recipe, architecture)
    reasons["tokens_per_row"] = "positions that a row puts through the model: data.sequence_length of a decoder"
    tokens_per_step = recipe.train.global_batch * tokens_per_row
    reasons["tokens_per_step"] = f"{recipe.train.global_batch} rows × {tokens_per_row} tokens"
    if layouts := recognised(recipe):
        reasons["layout"] = layouts
    rates = [part.train.global_batch * row_tokens(part, architecture) for part in parts]
    steps, spans = _steps(recipe, rates, rows, reasons)
    if recipe.train.minutes is not None:
        reasons["steps"] += f"; fewer if {recipe.train.minutes:g} minutes hold fewer, measured when it starts"
    memory = estimate_memory(recipe, architecture, mesh, micro_batch=micro_batch, gpu=world.gpu)
    background, reasons["background"] = background_of(
        recipe, memory, world.device_bytes, gpu=world.gpu, ranks=world.size, host_bytes=world.host_bytes
    )
    plan = RunPlan(
        world=world,
        mesh=mesh,
        precision=chosen.precision,
        precision_known=chosen.known,
        rows_per_rank=rank_rows,
        micro_batch=micro_batch,
        accumulation=accumulation,
        steps=steps,
        tokens_per_row=tokens_per_row,
        tokens_per_step=tokens_per_step,
        streams=_streams(recipe, mesh, reasons),
        warmup=_warmup(recipe.schedule.warmup, steps, reasons),
        evaluate_every=_every(recipe.evaluate.every, steps, "evaluate_every", reasons),
        checkpoint_every=_checkpoint_every(recipe.checkpoint.every, steps, reasons),
        checkpoint_seconds=parse_seconds(recipe.checkpoint.every) if isinstance(recipe.checkpoint.every, str) else None,
        record_every=_every(recipe.tracking.every, steps, "record_every", reasons),
        architecture=architecture,
        flops_per_token=_flops(recipe, architecture, reasons),
        memory=memory,
        background=background,
        deepspeed=deepspeed_config(
            recipe,
            micro_batch=micro_batch,
            accumulation=accumulation,
            gpu=world.gpu,
            parameters=architecture.trained_parameters,
        ),
        **_whereabouts(recipe, world, reasons),
        reasons=reasons,
        isolation=isolation,
        logits_chunk=chunked.logits_chunk,
        recomputed=again.recomputed,
        stages=(),
        sources=(),
        sizes=() if recipe.data.temperature is None else tuple(source.size for source in recipe.data.train),
        readers=_readers(recipe, world, reasons),
    )
    if len(parts) > 1:
        plan = _with_stages(recipe, plan, [micro_batch, *(one.micro_batch for one in later)], spans)
    return replace(plan, sources=source_plans(recipe, plan.stage_tokens, stage_weights(recipe)))


def fixed(recipe: Recipe, plan: RunPlan) -> Recipe:
    """The recipe with the derived values that stay fixed when the run continues on another machine."""
    if recipe.train.epochs is not None:
        train = recipe.train.model_copy(update={"steps": plan.steps, "epochs": None})
        recipe = recipe.model_copy(update={"train": train})
    if plan.sizes and lacks_sizes(recipe.data):
        sized = zip(recipe.data.train, plan.sizes, strict=True)
        sources = [source.model_copy(update={"size": size}) for source, size in sized]
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": sources})})
    recipe = with_findings(recipe, plan.architecture.findings)
    if plan.logits_chunk is not None:
        recipe = with_logits_chunk(recipe, plan.logits_chunk)
    if plan.recomputed is not None and recipe.model.activation_checkpointing is None:
        recipe = with_recomputed(recipe, plan.recomputed)
    return with_precision(recipe, plan.precision) if plan.precision_known else recipe


def _check_findings(recipe: Recipe, findings: Findings) -> None:
    if findings.refusals:
        raise RecipeError("plan", [Problem("", path, message) for path, message in findings.refusals])
    if findings.isolation is None and findings.isolation_why and is_packed(recipe) and recipe.data.isolation == "auto":
        raise refusal(
            "data.isolate_documents",
            f"nothing keeps the documents of a row apart in {recipe.model.label} ({findings.isolation_why}); set it to "
            "false to let documents see those before them, or choose another family",
        )


def _isolation(recipe: Recipe, findings: Findings, reasons: dict[str, str]) -> Isolation | None:
    """What keeps documents apart: given by the recipe, or the first way that a probe found to do so."""
    if not is_packed(recipe):
        return None
    given, found = recipe.data.isolation, findings.isolation
    unpacked = "; so nothing is packed, whatever data.packing says"
    if given == "auto":
        if found is not None:
            reasons["isolation"] = findings.isolation_why + _HINTS[found]
            reasons["isolation"] += unpacked if found == "rows" and recipe.data.packing else ""
        return found
    reasons["isolation"] = "given by data.isolation" + (unpacked if given == "rows" and recipe.data.packing else "")
    if findings.isolation_why and (found is None or ISOLATIONS.index(given) < ISOLATIONS.index(found)):
        reasons["isolation"] += f", but documents see each other ({findings.isolation_why})"
    return given


def _mesh_reason(recipe: Recipe, mesh: MeshShape) -> str:
    """The axes in words."""
    if mesh.world == mesh.data:
        reason = "all ranks are data-parallel"
    else:
        inner = [f"{name} {mesh.size(name)}" for name in ("tensor", "sequence") if mesh.size(name) > 1]
        reason = f"{mesh.world} ranks / ({' × '.join(inner)}) = {mesh.data} that read different rows"
    return reason + (f"; groups of {mesh.expert} of them share experts" if recipe.parallel.expert > 1 else "")


def _whereabouts(recipe: Recipe, world: World, reasons: dict[str, str]) -> dict[str, str]:
    """The resources of each worker, the placement of workers on nodes, and their network, in words."""
    demand, settings = demand_of(recipe, gpu=world.gpu, workers=world.size), recipe.cluster
    given = settings.gpus_per_worker is not None
    gpus = "cluster.gpus_per_worker" if given else "one GPU a rank" if world.gpu else "no GPU found"
    cores = cpus_of(recipe, gpu=world.gpu)[1]
    reasons["bundle"] = f"what Ray reserves for each of {world.size} workers: {cores}, {gpus}"
    if settings.placement is not None:
        reasons["placement"] = "given by cluster.placement"
    elif demand.strategy == "strict_spread":
        reasons["placement"] = "cluster.workers_per_node is 1"
    else:
        reasons["placement"] = "neighbouring ranks share a node, because they communicate most"
    backend = "NCCL, as ranks compute on GPUs" if world.gpu else "gloo, as ranks compute on the CPU"
    reasons["network"] = f"{backend}; each host derives its own variables, run.json lists them"
    return {
        "bundle": bundle_in_words(demand.bundle),
        "placement": placement_in_words(demand),
        "network": f"{'nccl' if world.gpu else 'gloo'}: {network_in_words(settings.network, gpu=world.gpu)}",
    }


def _check_shared_gpus(recipe: Recipe, world: World) -> None:
    gpus = recipe.cluster.gpus_per_worker
    if world.gpu and gpus and gpus <= 0.5 and world.size > 1:
        raise refusal(
            "cluster.gpus_per_worker",
            f"workers of {gpus:g} GPUs may share one, and NCCL refuses two ranks of a run on one GPU; use 1 or 0, "
            "or cluster.workers 1 (several runs may share a GPU)",
        )


def _steps(
    recipe: Recipe, tokens_per_step: list[int], rows: int | None, reasons: dict[str, str]
) -> tuple[int, list[Span]]:
    """The steps of the run, and of each of its stages; `tokens_per_step` is of each stage."""
    train = recipe.train
    steps, rate = train.steps, tokens_per_step[0]
    if steps is not None:
        reasons["steps"] = "given by train.steps"
    elif train.epochs is not None:
        assert rows is not None, "counted while planning"
        reasons["steps"] = f"{train.epochs:g} epochs of {rows} rows / {train.global_batch} rows a step, rounded up"
        steps = max(1, math.ceil(train.epochs * rows / train.global_batch))
    else:
        assert train.tokens is not None, "checked with the recipe"
        each = f"{rate} a step" if len(set(tokens_per_step)) == 1 else "those of a step in each stage"
        reasons["steps"] = f"{format_count(train.tokens)} tokens / {each}, rounded up"
    try:
        spans = spans_of(recipe.data.stages, tokens_per_step, steps, train.tokens)
    except StageOrderError as error:
        raise refusal(f"data.stages.{error.number}", str(error)) from error
    return spans[-1].begin + spans[-1].steps, spans


def _with_stages(recipe: Recipe, plan: RunPlan, micro_batches: list[int], spans: list[Span]) -> RunPlan:
    """The plan with its stages, and with what the largest of them needs."""
    architecture, parts = plan.architecture, stage_recipes(recipe)
    names = ["stage 1", *(one.name or f"stage {number}" for number, one in enumerate(recipe.data.stages, 2))]
    stages = [
        StagePlan(
            name=name,
            begin=span.begin,
            steps=span.steps,
            first_row=0,
            global_batch=part.train.global_batch,
            micro_batch=micro_batch,
            accumulation=rows_per_rank(part, plan.mesh) // micro_batch,
            sequence_length=part.data.sequence_length,
            tokens_per_row=row_tokens(part, architecture),
            tokens_per_step=part.train.global_batch * row_tokens(part, architecture),
            flops_per_token=_flops(part, architecture, {}),
            weights=tuple(weights),
        )
        for name, part, weights, micro_batch, span in zip(
            names, parts, stage_weights(recipe), micro_batches, spans, strict=True
        )
    ]
    needed = [
        estimate_memory(part, architecture, plan.mesh, micro_batch=stage.micro_batch, gpu=plan.world.gpu)
        for part, stage in zip(parts, stages, strict=True)
    ]
    # Offloaded gradients are only kept apart if DeepSpeed is told that there are several micro-batches.
    most = max(range(len(stages)), key=lambda number: stages[number].accumulation)
    compiled = deepspeed_config(
        parts[most],
        micro_batch=stages[most].micro_batch,
        accumulation=stages[most].accumulation,
        gpu=plan.world.gpu,
        parameters=architecture.trained_parameters,
    )
    memory = max(needed, key=lambda one: one.device_bytes)
    return replace(plan, stages=placed(stages), memory=memory, deepspeed=compiled)


def _streams(recipe: Recipe, mesh: MeshShape, reasons: dict[str, str]) -> int:
    streams = streams_of(recipe, mesh.world)
    if streams % mesh.data:
        raise refusal("data.streams", f"{streams} streams cannot be shared by {mesh.data} ranks; set a multiple of it")
    if recipe.data.streams:
        reasons["streams"] = "given by data.streams"
    elif streams == default_streams(recipe.train.global_batch):
        reasons["streams"] = "largest divisor of the global batch up to 64"
    else:
        reasons["streams"] = f"one for each row of the global batch, so that {mesh.data} ranks share them"
    return streams


def _readers(recipe: Recipe, world: World, reasons: dict[str, str]) -> int:
    readers, reasons["readers"] = readers_of(recipe, gpu=world.gpu)
    return readers


def _every(given: float | None, steps: int, name: str, reasons: dict[str, str]) -> int:
    if given is None:
        reasons[name] = "a tenth of the steps"
        return max(1, steps // 10)
    reasons[name] = _by_the_recipe(given, steps)
    return in_steps(given, steps)


def _checkpoint_every(given: float | str | None, steps: int, reasons: dict[str, str]) -> int:
    if not isinstance(given, str):
        return _every(given, steps, "checkpoint_every", reasons)
    reasons["checkpoint_every"] = "by the recipe: rank 0's clock, and at the end"
    return steps


def _warmup(given: float, steps: int, reasons: dict[str, str]) -> int:
    if isinstance(given, int) and given >= max(1, steps):
        raise refusal("schedule.warmup", f"{given} steps of warm-up take all of the {steps} steps of training")
    reasons["warmup"] = _by_the_recipe(given, steps)
    return in_steps(given, steps, most=steps - 1)


def _by_the_recipe(given: float, steps: int) -> str:
    return "given by the recipe" if isinstance(given, int) else f"{given:.4g} of {steps} steps"


def _flops(recipe: Recipe, architecture: Architecture, reasons: dict[str, str]) -> float:
    length = row_tokens(recipe, architecture)
    if architecture.flops_per_row is not None:
        reasons["flops_per_token"] = f"3 × the products of a forward pass, counted on one row of {length} tokens"
        return flops_per_token(architecture, length)
    length //= objective_spec(recipe.objective).sequences
    reasons["flops_per_token"] = (
        f"6 × {format_count(architecture.matmul_parameters)} weights + 12 × {architecture.layers} layers × "
        f"{architecture.attention_width or architecture.hidden_size} × {length} (PaLM, appendix B)"
    )
    return flops_per_token(architecture, length)
