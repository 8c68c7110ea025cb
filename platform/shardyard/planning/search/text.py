"""What a search found, as lines of text and as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardyard.planning.memory import Memory
from shardyard.planning.plan import RunPlan
from shardyard.planning.search.search import SPARE, Question, Way, fewest_devices, least
from shardyard.units import format_bytes, format_count, format_seconds

FRONT_COLUMNS = ("GPUs", "changes", "micro-batch", "tokens/s", "MFU", "memory a rank", "free", "time", "cost")


def as_plain(way: Way) -> dict[str, object]:
    """A way as plain data; speed only where it is forecast."""
    found = way.forecast
    plain: dict[str, object] = {
        "overrides": list(way.overrides),
        "gpus": way.gpus,
        "micro_batch": way.plan.micro_batch,
        "device_bytes": way.plan.memory.device_bytes,
        "headroom_bytes": way.headroom_bytes,
    }
    if found is not None:
        plain |= {
            "tokens_per_second": found.tokens_per_second,
            "mfu": found.mfu,
            "seconds": found.seconds,
            "gpu_hours": found.gpu_hours,
            "cost": found.cost,
        }
    return plain


def change_rows(plan: RunPlan, rate: float, changes: Sequence[Way]) -> Iterator[tuple[str, str, str]]:
    """The changes that make a plan fit or go faster as lines of text: name, value, gain.

    Args:
        rate: tokens per second of `plan`; 0 if it is not forecast, or does not fit.
    """
    for number, way in enumerate(changes, 1):
        gains = []
        if way.rate:
            per_gpu = f"{way.rate / way.gpus:,.0f} tokens/s a GPU"
            gains.append(f"{per_gpu}, {way.rate / rate:.2f} ×" if rate and plan.fits else per_gpu)
        more = way.plan.memory.device_bytes - plan.memory.device_bytes
        difference = f" ({'+' if more > 0 else '−'}{format_bytes(abs(more))})"
        gains.append(f"{format_bytes(way.plan.memory.device_bytes)} a rank{difference if more else ''}")
        what = "faster" if plan.fits else "fits"
        yield f"{what} {number}", as_options(way), "; ".join(gains)


def missing_rows(question: Question, found: Sequence[Way]) -> Iterator[tuple[str, str, str]]:
    """Where no way fits: what is missing, what it is needed for, and from how many GPUs on something fits."""
    device = question.plan.world.device_bytes or 0
    smallest = least(found)
    if smallest is None:
        return
    needed = smallest.plan.memory
    short = format_bytes(needed.device_bytes - device)
    why = f"{format_bytes(needed.device_bytes)} of {format_bytes(device)}, most of it {_largest(needed)}"
    yield "missing", f"{short} a rank", f"with the least that a rank can need ({as_options(smallest)}): {why}"
    more = fewest_devices(question)
    if more is None:
        yield "fits", "on no number of these", "GPUs with more memory are needed, or shorter rows, or a smaller model"
    else:
        yield "fits", f"{more.gpus} of these GPUs", f"with {as_options(more)}; or fewer with more memory each"


def front_rows(ways: Sequence[Way]) -> Iterator[tuple[str, ...]]:
    """The front as lines of text, in the order of FRONT_COLUMNS."""
    for way in ways:
        found = way.forecast
        speed: tuple[str, ...] = ("", "", "", "")
        if found is not None:
            cost = "" if found.cost is None else f"{found.cost:,.0f}"
            speed = (format_count(way.rate), f"{found.mfu:.1%}", format_seconds(found.seconds), cost)
        memory = format_bytes(way.plan.memory.device_bytes), format_bytes(way.headroom_bytes)
        yield str(way.gpus), as_options(way), str(way.plan.micro_batch), *speed[:2], *memory, *speed[2:]


def front_note(found: Sequence[Way]) -> str:
    """How the front was found, in a sentence."""
    fitting = sum(way.fits for way in found)
    return (
        f"{len(found)} ways were planned, {fitting} fit. Shown are those that none beats in speed, free memory and "
        f"number of GPUs; they leave {SPARE:.0%} of a GPU free where any does. Global batch, optimizer and data stay."
    )


def as_options(way: Way) -> str:
    """`-s zero.stage=3 -s …`."""
    return " ".join(f"-s {one}" for one in way.overrides) or "as it is"


def _largest(memory: Memory) -> str:
    parts = {
        "parameters": memory.parameters_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer states": memory.optimizer_bytes,
        "activations": memory.activations_bytes,
        "logits": memory.logits_bytes,
        "buffers": memory.buffers_bytes,
    }
    name = max(parts, key=lambda part: parts[part])
    return f"{name} ({format_bytes(parts[name])})"
