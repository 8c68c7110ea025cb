"""What the plan of a run predicted beside what the run measured, in memory and in speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from shardyard.tracking.files import MetricsTail
from shardyard.tracking.metrics import record
from shardyard.tracking.run.folder import RunFolder
from shardyard.units import format_bytes, format_count, format_seconds

_TAIL_BYTES = 64 * 1024
# A process with torch, Ray and DeepSpeed takes this much before it has a model; resident memory counts it.
_RESIDENT = "resident, with the process itself"


@dataclass(frozen=True)
class Measured:
    """What a run measured lately: medians of speeds, the most memory. None: not measured."""

    tokens_per_second: float | None = None
    step_seconds: float | None = None
    peak_allocated_bytes: int | None = None
    rss_bytes: int | None = None


def measured(run: RunFolder) -> Measured:
    """From the last lines of metrics.jsonl.

    Raises:
        OSError: it exists but cannot be read.
    """
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    lines = MetricsTail(run.metrics, max(0, size - _TAIL_BYTES)).new()

    def values(name: str) -> list[float]:
        return [line[name] for line in lines if name in line]

    def middle(name: str) -> float | None:
        return median(found) if (found := values(name)) else None

    def most(name: str) -> int | None:
        return int(max(found)) if (found := values(name)) else None

    return Measured(
        tokens_per_second=middle(record.TOKENS_PER_SECOND),
        step_seconds=middle(record.STEP_SECONDS),
        peak_allocated_bytes=most(record.PEAK_ALLOCATED_BYTES),
        rss_bytes=most(record.RSS_BYTES),
    )


def compared(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Lines of text: speed and memory, measured and predicted; those of which something is known.

    Raises:
        OSError: metrics.jsonl exists but cannot be read.
    """
    found, told = measured(run), run.info().predicted
    rate, expected = found.tokens_per_second, told.get("tokens_per_second")
    if rate is not None:
        yield "tokens/s", _beside(format_count(rate), rate, format_count(expected) if expected else "", expected)
    step, expected = found.step_seconds, told.get("step_seconds")
    if step is not None:
        yield "step", _beside(format_seconds(step), step, format_seconds(expected) if expected else "", expected)
    planned = told.get("device_bytes")
    if planned is None:
        return
    if found.peak_allocated_bytes is not None:
        peak = found.peak_allocated_bytes
        yield "memory a rank", _beside(format_bytes(peak), peak, format_bytes(planned), planned)
    elif found.rss_bytes is not None:
        yield "memory a rank", f"{format_bytes(planned)} predicted; {format_bytes(found.rss_bytes)} {_RESIDENT}"
    else:
        yield "memory a rank", f"{format_bytes(planned)} predicted"


def _beside(value: str, number: float, other: str, expected: float | None) -> str:
    """`5.2K measured, 5.8K predicted (−10 %)`."""
    if not expected:
        return f"{value} measured"
    off = number / expected - 1
    return f"{value} measured, {other} predicted ({'+' if off >= 0 else '−'}{abs(off):.0%})"
