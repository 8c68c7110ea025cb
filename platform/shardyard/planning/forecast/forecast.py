"""The forecast of a plan on named hardware: speed, time, energy, cost, disk, and what ranks exchange. Pure arithmetic.

docs/large/forecast.md explains the model and compares it with published figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shardyard.objectives.registry import objective_spec
from shardyard.planning.forecast.accelerators import Accelerator
from shardyard.planning.forecast.communication import (
    DataTraffic,
    Transfer,
    data_transfers,
    host_transfers,
    layer_transfers,
)
from shardyard.planning.forecast.compute import Compute, Kernels, Work, compute, peak_of
from shardyard.planning.forecast.hardware import Hardware
from shardyard.planning.forecast.step import StepTime, step_time, update_seconds
from shardyard.planning.host_memory import host_memory
from shardyard.planning.memory import on_a_tensor_rank
from shardyard.planning.plan import RunPlan, World, fixed
from shardyard.planning.reduction import BYTES, accumulation_type, bucket_elements
from shardyard.recipe.mixture.stages import stage_recipes
from shardyard.recipe.precision import Bf16
from shardyard.recipe.schema import Recipe

_HOUR = 3600.0


@dataclass(frozen=True)
class Assumptions:
    """What a forecast cannot know.

    draw: mean power of a GPU, as a share of its design power. host: power of the rest of a node, as a share of that of
    its GPUs. pue: power of the building over that of the machines.
    gpu_hours_per_failure: Llama 3 counted 419 unexpected stops in 54 days on 16,384 GPUs (arXiv:2407.21783, section
    3.3.4). write_rate: bytes a second that a node writes to the storage of checkpoints. copy_rate: bytes a second at
    which a rank copies its states to the memory of the host.
    """

    draw: float = 0.85
    host: float = 0.3
    pue: float = 1.2
    gpu_hours_per_failure: float = 50_700
    write_rate: float = 2e9
    copy_rate: float = 10e9


@dataclass(frozen=True)
class Forecast:
    """What a plan is expected to do on `hardware`; docs/large/forecast.md has the error of such a forecast.

    step, transfers: of a step of the first stage. tokens_per_second: of all GPUs, in training steps.
    mfu: model FLOPs over the dense peak of the precision. seconds: of all training steps, without evaluation,
    checkpoints, start and failures. energy_kwh: of the building. cost: in the unit of the price; None without one.
    checkpoint_bytes: of one checkpoint. disk_bytes: of all that are kept, and of the exported model.
    host_bytes: memory of a node's host, and why. fits: whether the memory of a rank is enough.
    """

    hardware: Hardware
    step: StepTime
    transfers: tuple[Transfer, ...]
    tokens_per_step: int
    tokens_per_second: float
    mfu: float
    seconds: float
    gpu_hours: float
    energy_kwh: float
    cost: float | None
    checkpoint_bytes: int
    disk_bytes: int
    host_bytes: int
    host_why: str
    fits: bool
    assumptions: Assumptions = field(default_factory=Assumptions)
    background: bool = False

    @property
    def failure_seconds(self) -> float:
        """Mean time between failures of all GPUs."""
        return self.assumptions.gpu_hours_per_failure * _HOUR / self.hardware.gpus

    @property
    def write_seconds(self) -> float:
        """Time for which a checkpoint is written."""
        nodes = max(1, self.hardware.gpus / self.hardware.per_node)
        return self.checkpoint_bytes / (nodes * self.assumptions.write_rate)

    @property
    def pause_seconds(self) -> float:
        """Time for which a checkpoint stops the training."""
        copied = self.checkpoint_bytes / (self.hardware.gpus * self.assumptions.copy_rate)
        return copied if self.background else self.write_seconds

    @property
    def checkpoint_seconds(self) -> float:
        """The time between two checkpoints that loses least, by Young and Daly: √(2·pause·mean time between failures);
        at least as long as one is being written."""
        return max(self.write_seconds, math.sqrt(2 * self.pause_seconds * self.failure_seconds))

    @property
    def tokens_per_second_per_gpu(self) -> float:
        """Tokens per second of one GPU."""
        return self.tokens_per_second / self.hardware.gpus

    def sent_bytes(self, axis: str) -> float:
        """Bytes that one rank sends in a step along an axis."""
        return sum(one.sent_bytes for one in self.transfers if one.axis == axis)


def world_on(hardware: Hardware, device_bytes: int | None = None) -> World:
    """The world of a run on `hardware`: a rank on each accelerator, with its memory unless `device_bytes` is given."""
    device = hardware.accelerator
    units = "bf16" in device.peaks
    bf16 = Bf16(units, f"{device.title} has {'' if units else 'no '}bf16 units")
    return World(size=hardware.gpus, gpu=True, device_bytes=device_bytes or device.memory_bytes, bf16=bf16)


def forecast(
    recipe: Recipe,
    plan: RunPlan,
    hardware: Hardware,
    *,
    assumptions: Assumptions | None = None,
    kernels: Kernels | None = None,
) -> Forecast:
    """What `plan`, which was made for `world_on(hardware)`, does on it.

    Args:
        kernels: of other software, to compare with published figures; by default what the recipe uses.
    """
    assumed = assumptions or Assumptions()
    recipe = fixed(recipe, plan)
    timed = _stages(recipe, plan, hardware, kernels)
    step, transfers, _ = timed[0]
    seconds = sum(one.seconds * steps for one, _, steps in timed)
    rate = plan.tokens / seconds
    hours = seconds / _HOUR
    device = hardware.accelerator
    watts = device.watts * assumed.draw * (1 + assumed.host) * assumed.pue
    host_bytes, host_why = host_memory(recipe, plan, min(hardware.per_node, hardware.gpus), gpu=True)
    one = checkpoint_bytes(recipe, plan)
    return Forecast(
        hardware=hardware,
        step=step,
        transfers=transfers,
        tokens_per_step=plan.tokens_per_step,
        tokens_per_second=rate,
        mfu=plan.flops / seconds / (hardware.gpus * peak_of(device, plan.precision)),
        seconds=seconds,
        gpu_hours=hours * hardware.gpus,
        energy_kwh=watts * hardware.gpus * hours / 1000,
        cost=None if hardware.price is None else hardware.price * hours * hardware.gpus,
        checkpoint_bytes=one,
        disk_bytes=one * recipe.checkpoint.keep + 2 * plan.architecture.parameters,
        host_bytes=host_bytes,
        host_why=host_why,
        fits=plan.fits is not False,
        assumptions=assumed,
        background=plan.background,
    )


def checkpoint_bytes(recipe: Recipe, plan: RunPlan) -> int:
    """Bytes of one checkpoint: the fp32 weights and optimizer states of all ranks, and below stage 3 the weights in the
    precision of the forward pass."""
    memory, stage = plan.memory, recipe.zero.stage
    shards = plan.mesh.data * plan.mesh.sequence if stage else 1
    whole = memory.optimizer_bytes * shards
    if recipe.zero.offload_optimizer == "nvme":
        # Gradients stay behind.
        whole = memory.swapped_bytes * (4 * (1 + 2)) // (4 * (1 + 2 + 1)) * shards
    elif recipe.zero.offload_optimizer:
        whole = memory.offloaded_bytes * shards
    parameters = plan.architecture.parameters * _width(plan)
    return round(whole * plan.mesh.tensor + (parameters if stage < 3 else 0))


def work_of(recipe: Recipe, plan: RunPlan, rows: int, length: int, kernels: Kernels | None = None) -> Work:
    """What a rank computes in a micro-batch of `rows` rows of `length` tokens."""
    architecture, model = plan.architecture, recipe.model
    trained = architecture.trainable_parameters
    sequences = objective_spec(recipe.objective).sequences if architecture.flops_per_row is None else 1
    return Work(
        architecture=architecture,
        rows=rows * sequences,
        length=max(1, length // sequences),
        precision=plan.precision,
        width_bytes=_width(plan),
        tensor=plan.mesh.tensor,
        sequence=plan.mesh.sequence,
        expert=plan.mesh.expert,
        trained=1.0 if trained is None else min(1.0, trained / max(1, architecture.parameters)),
        causal=plan.isolation != "mask",
        recomputed=_recomputed(plan),
        chunked_logits=bool(plan.logits_chunk),
        stage_3=recipe.zero.stage == 3,
        kernels=kernels
        or Kernels(attention="eager" if model.attention == "eager" else "flash2", fused=bool(model.compile)),
    )


def _stages(
    recipe: Recipe, plan: RunPlan, hardware: Hardware, kernels: Kernels | None
) -> list[tuple[StepTime, tuple[Transfer, ...], int]]:
    """Of each stage the time of a step, what it exchanges, and its number of steps."""
    sizes = [(plan.micro_batch, plan.accumulation, plan.tokens_per_row, plan.steps)]
    if plan.stages:
        sizes = [(one.micro_batch, one.accumulation, one.tokens_per_row, one.steps) for one in plan.stages]
    timed = []
    for part, (rows, accumulation, length, steps) in zip(stage_recipes(recipe), sizes, strict=True):
        work = work_of(part, plan, rows, length, kernels)
        computed = _computed(part, work, hardware.accelerator)
        transfers = tuple(transfers_of(part, plan, work, hardware, accumulation))
        timed.append((_step(part, plan, hardware, computed, transfers, accumulation), transfers, steps))
    return timed


def _computed(recipe: Recipe, work: Work, device: Accelerator) -> Compute:
    """Seconds of a micro-batch, with the forward pass of a reference model where the objective has one."""
    found = compute(work, device)
    if objective_spec(recipe.objective).frozen != "reference":
        return found
    return Compute(
        products=(2 * found.products[0], found.products[1]),
        attention=(2 * found.attention[0], found.attention[1]),
        elementwise=(2 * found.elementwise[0], found.elementwise[1]),
        logits=(2 * found.logits[0], found.logits[1]),
        launch=found.launch * 4 / 3,
    )


def transfers_of(recipe: Recipe, plan: RunPlan, work: Work, hardware: Hardware, accumulation: int) -> list[Transfer]:
    """What a rank exchanges in a step, along every axis."""
    return [
        *data_transfers(traffic_of(recipe, plan, work, accumulation), hardware),
        *layer_transfers(work, hardware, accumulation),
        *host_transfers(hardware.accelerator, accumulation, **_offloaded(recipe, plan, work)),
    ]


def _offloaded(recipe: Recipe, plan: RunPlan, work: Work) -> dict[str, float]:
    """Bytes of activations and weights in host memory that a micro-batch needs; the first are inputs of layers."""
    found = dict[str, float]()
    inputs = work.tokens * plan.architecture.hidden_size * work.width_bytes * plan.architecture.layers
    if recipe.model.offload_activations:
        found["activations"] = inputs * max(work.recomputed)
    if recipe.zero.offload_parameters:
        own = on_a_tensor_rank(plan.architecture, plan.mesh).parameters / (plan.mesh.data * plan.mesh.sequence)
        found["weights"] = work.width_bytes * own
    return found


def traffic_of(recipe: Recipe, plan: RunPlan, work: Work, accumulation: int) -> DataTraffic:
    """What data-parallel ranks exchange. Those that share the tokens of a row hold the same weights, and ZeRO shards
    over them too."""
    architecture, mesh, zero = on_a_tensor_rank(plan.architecture, plan.mesh), plan.mesh, recipe.zero
    shard = mesh.data * mesh.sequence
    sent = BYTES[zero.communication_data_type]
    experts = architecture.expert_parameters
    dense = architecture.parameters - experts - architecture.quantized_parameters
    return DataTraffic(
        stage=zero.stage,
        weights=max(0, dense),
        expert_weights=experts / work.expert,
        trained=work.trained,
        gradient_bytes=sent,
        weight_bytes=work.width_bytes,
        bucket_bytes=sent * bucket_elements(zero, shard),
        layers=max(1, architecture.layers),
        size=shard,
        inner=work.tensor,
        expert=work.expert,
        accumulation=accumulation,
        second=zero.hpz_partition_size,
        beside=plan.precision != "bf16" or accumulation_type(recipe) != "fp32" or bool(zero.offload_optimizer),
    )


def _step(
    recipe: Recipe,
    plan: RunPlan,
    hardware: Hardware,
    computed: Compute,
    transfers: tuple[Transfer, ...],
    accumulation: int,
) -> StepTime:
    architecture, mesh, zero = on_a_tensor_rank(plan.architecture, plan.mesh), plan.mesh, recipe.zero
    trained = architecture.trainable_parameters
    weights = architecture.parameters if trained is None else trained
    shard = mesh.data * mesh.sequence
    owned = weights / (shard if zero.stage else 1)
    kept = weights / (shard if zero.stage >= 2 else 1)
    update = update_seconds(
        hardware.accelerator,
        owned,
        accumulated=accumulation * kept if accumulation > 1 else 0.0,
        offloaded=bool(zero.offload_optimizer),
        per_node=min(hardware.per_node, hardware.gpus),
        weight_bytes=_width(plan),
    )
    return step_time(computed, transfers, accumulation, update)


def _recomputed(plan: RunPlan) -> tuple[float, float, float]:
    """Shares of the layers' forward pass that activation checkpointing computes again."""
    chosen, layers = plan.recomputed, max(1, plan.architecture.layers)
    if chosen is None or chosen.mode == "none":
        return (0.0, 0.0, 0.0)
    share = math.ceil(layers / chosen.interval) / layers
    return (share, share, share) if chosen.mode == "full" else (0.0, 0.0, share)


def _width(plan: RunPlan) -> int:
    return 4 if plan.precision == "fp32" else 2
