"""A forecast as lines of text: what, value, and what was assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from shardyard.planning.forecast.communication import Transfer
from shardyard.planning.forecast.compute import SUSTAINED, peak_of
from shardyard.planning.forecast.forecast import Forecast
from shardyard.planning.forecast.hardware import LINK_SHARE
from shardyard.planning.forecast.step import CONTENTION
from shardyard.planning.plan import RunPlan
from shardyard.units import format_bytes, format_count, format_seconds

_TERA = 1e12


def as_plain(found: Forecast) -> dict[str, object]:
    """The forecast as plain data, with its totals; the JSON of `shardyard plan --gpus`."""
    plain = asdict(found)
    device, network = found.hardware.accelerator, found.hardware.network
    plain["hardware"] = {
        "gpu": device.name,
        "gpus": found.hardware.gpus,
        "per_node": found.hardware.per_node,
        "network": None if network is None else network.name,
        "price": found.hardware.price,
        "source": device.source,
    }
    return plain | {
        "step_seconds": found.step.seconds,
        "tokens_per_second_per_gpu": found.tokens_per_second_per_gpu,
        "sent_bytes": {axis: found.sent_bytes(axis) for axis in dict.fromkeys(one.axis for one in found.transfers)},
    }


def forecast_rows(found: Forecast, plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    """The forecast as lines of text: name, value, reason or assumption."""
    yield from _hardware_rows(found, plan)
    yield from (_transfer_row(one, found) for one in found.transfers)
    yield from _step_rows(found)
    yield from _run_rows(found, plan)
    yield from _storage_rows(found)


def _hardware_rows(found: Forecast, plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    hardware, device = found.hardware, found.hardware.accelerator
    peak = f"{peak_of(device, plan.precision) / _TERA:.4g} TFLOP/s in {_units(found, plan)}"
    yield (
        "GPUs",
        f"{hardware.gpus} × {device.title}",
        f"{peak}, {device.bandwidth / _TERA:.3g} TB/s ({device.source})",
    )
    yield "link", device.link.name, f"{device.link.rate / 1e9:.4g} GB/s each way ({device.link.source})"
    if hardware.network is not None:
        network = hardware.network
        yield "nodes", str(hardware.nodes), f"{hardware.per_node} GPUs in each"
        yield "between nodes", network.name, f"{network.rate / 1e9:.4g} GB/s a node each way ({network.source})"


def _units(found: Forecast, plan: RunPlan) -> str:
    """The precision whose peak counts: of a GPU without units for that of the plan, fp32."""
    if plan.precision in found.hardware.accelerator.peaks:
        return plan.precision
    return f"fp32, as it has no units for {plan.precision}"


def _transfer_row(one: Transfer, found: Forecast) -> tuple[str, str, str]:
    where = {
        "within": "computation waits for it",
        "after": "after the last micro-batch; nothing runs beside it",
        "last backward": "beside the last backward pass",
    }
    how = where.get(one.when, f"beside the {one.when} pass")
    value = f"{format_bytes(one.sent_bytes)} a step, {format_seconds(one.seconds)}"
    who = "moved" if one.axis == "host" else "sent"
    return f"{one.axis}: {one.what}", value, f"{who} by a rank, {one.per_step} × a step; {how}"


def _step_rows(found: Forecast) -> Iterator[tuple[str, str, str]]:
    step, device = found.step, found.hardware.accelerator
    best = f"{device.matmul_share:.0%} of the peak at best ({'published' if device.measured else 'assumed'})"
    sustained = f"{SUSTAINED.get(device.generation, SUSTAINED['other']):.0%} of that in a whole step"
    hidden = f"{step.hidden / step.seconds:.0%} more is hidden, and slows computation by {CONTENTION:.0%} of it"
    whys = (
        ("matrix products", step.products, f"{best}, {sustained}, less for small ones"),
        ("attention", step.attention, "what the mask leaves, at the rate of FlashAttention on this GPU"),
        ("memory-bound", step.elementwise, "norms, residuals, activations: bytes over the memory bandwidth"),
        ("logits and loss", step.logits, "the output matrix, and the loss in fp32"),
        ("launching kernels", step.launch, "where the CPU is slower than the GPU"),
        ("waiting", step.exposed, f"exchanges that nothing hides; {hidden}"),
        ("optimizer", step.optimizer, "update and norm of the gradients"),
    )
    for name, seconds, why in whys:
        if seconds > 0.0005 * step.seconds:
            yield f"step: {name}", f"{format_seconds(seconds)}, {seconds / step.seconds:.0%}", why
    yield "step", format_seconds(step.seconds), f"collectives reach {LINK_SHARE:.0%} of a link"


def _run_rows(found: Forecast, plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    hardware, assumed = found.hardware, found.assumptions
    yield (
        "tokens a second",
        format_count(found.tokens_per_second),
        f"{found.tokens_per_second_per_gpu:,.0f} a GPU; runs that others published were met within 15 %",
    )
    yield "MFU", f"{found.mfu:.1%}", f"FLOPs a token × tokens a second, of the peak in {_units(found, plan)}"
    yield (
        "training time",
        format_seconds(found.seconds),
        f"{found.seconds / 86400:.2f} days of {plan.steps} steps; without evaluation, checkpoints, start and failures",
    )
    yield "GPU-hours", f"{found.gpu_hours:,.1f}", f"{hardware.gpus} GPUs for the training time"
    power = f"{assumed.draw:.0%} of {hardware.accelerator.watts:g} W a GPU, {assumed.host:.0%} more for its host"
    yield "energy", f"{found.energy_kwh:,.1f} kWh", f"{power}, PUE {assumed.pue:g}"
    if found.cost is None:
        yield "cost", "not known", "--price 2.5 is the price of a GPU-hour"
    else:
        yield "cost", f"{found.cost:,.2f}", f"GPU-hours × {hardware.price:g}"


def _storage_rows(found: Forecast) -> Iterator[tuple[str, str, str]]:
    yield "checkpoint", format_bytes(found.checkpoint_bytes), "fp32 weights and optimizer states of all ranks"
    assumed, every = found.assumptions, found.checkpoint_seconds
    lost = found.pause_seconds / every + every / 2 / found.failure_seconds
    rate = (
        f"{assumed.copy_rate / 1e9:g} GB/s a rank" if found.background else f"{assumed.write_rate / 1e9:g} GB/s a node"
    )
    failures = (
        f"{format_seconds(found.failure_seconds)} ({assumed.gpu_hours_per_failure:,.0f} GPU-hours, as for Llama 3)"
    )
    why = f"√(2 × pause × time between failures), by Young and Daly: pauses of {format_seconds(found.pause_seconds)}"
    yield (
        "checkpoint every",
        f"{format_seconds(every)} is best",
        f"{why} at {rate}, a failure every {failures}; both cost {lost:.1%} of the time",
    )
    yield "disk", format_bytes(found.disk_bytes), "checkpoints that are kept, and the exported model in 16 bits"
    yield "host memory", f"{format_bytes(found.host_bytes)} a node", found.host_why
