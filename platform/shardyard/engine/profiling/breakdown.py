"""Where the time of the profiled steps went, from the events of a trace. Pure arithmetic on intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from shardyard.engine.profiling.spans import PREFIX, STEP

# Begin and end, in microseconds.
Intervals = Sequence[tuple[float, float]]
# Span → part of a step.
_PARTS = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "update": "optimizer",
    "metrics": "metrics",
    "result": "metrics",
    "hooks": "hooks",
}
_ON_GPU = ("forward", "backward", "optimizer", "metrics")


class Event(TypedDict, total=False):
    """An event of a Chrome trace, as PyTorch writes it; times in microseconds."""

    ph: str
    cat: str
    name: str
    ts: float
    dur: float
    tid: int | str


@dataclass(frozen=True)
class Times:
    """Of a mean step, in seconds: the whole, and its parts, which add up to it."""

    step_seconds: float
    parts: dict[str, float]


def breakdown(events: Iterable[Event]) -> Times:
    """The parts of a mean step.

    Communication counts only while nothing is computed: on a GPU while only kernels of NCCL run, on a CPU while gloo
    works and no operation does. A part of a step on a GPU is the time of its kernels, and its waiting the time without
    any kernel that is not a wait for data.

    Raises:
        ValueError: the trace has no step.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    steps = _named(complete, STEP, "user_annotation")
    if not steps:
        raise ValueError("the trace has no step")
    kernels = [event for event in complete if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if kernels:
        sent = union(_interval(event) for event in kernels if "nccl" in event["name"].lower())
        computed = union(_interval(event) for event in kernels if "nccl" not in event["name"].lower())
    else:
        threads = {event.get("tid") for event in complete if event.get("name") == f"{PREFIX}{STEP}"}
        sent = union(_interval(event) for event in complete if event["name"].startswith("gloo:"))
        computed = union(
            _interval(event)
            for event in complete
            if event.get("cat") == "cpu_op" and event.get("tid") in threads and not event["name"].startswith("c10d::")
        )
    parts = {"communication": within(without(sent, computed), steps)}
    taken = parts["communication"]
    for span, part in _PARTS.items():
        spans = within(_named(complete, span, "user_annotation"), steps)
        if kernels and part in _ON_GPU:
            spans = within(_named(complete, span, "gpu_user_annotation") or spans, computed)
        elif kernels:
            spans = without(spans, computed)
        own = without(spans, taken)
        parts[part] = union([*parts.get(part, []), *own])
        taken = union([*taken, *own])
    if kernels:
        # Kernels that no span names, such as copies.
        parts["metrics"] = union([*parts["metrics"], *without(within(computed, steps), taken)])
        taken = union([*taken, *computed])
    parts["waiting"] = without(steps, taken)
    number = len(steps)
    seconds = {part: length(found) / number / 1e6 for part, found in parts.items()}
    return Times(length(steps) / number / 1e6, seconds)


def _interval(event: Event) -> tuple[float, float]:
    begin = float(event["ts"])
    return begin, begin + float(event.get("dur", 0.0))


def _named(events: Iterable[Event], span: str, category: str) -> Intervals:
    wanted = f"{PREFIX}{span}"
    return union(_interval(event) for event in events if event["name"] == wanted and event.get("cat") == category)


def union(intervals: Iterable[tuple[float, float]]) -> Intervals:
    """The same time as disjoint intervals in order."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif end > begin:
            merged.append((begin, end))
    return merged


def without(intervals: Intervals, others: Intervals) -> Intervals:
    """The time of disjoint intervals in order that is in none of the others, which are like them."""
    left: list[tuple[float, float]] = []
    first = 0
    for begin, end in intervals:
        while first < len(others) and others[first][1] <= begin:
            first += 1
        at = first
        while at < len(others) and others[at][0] < end:
            if others[at][0] > begin:
                left.append((begin, others[at][0]))
            begin = max(begin, others[at][1])
            at += 1
        if end > begin:
            left.append((begin, end))
    return left


def within(intervals: Intervals, others: Intervals) -> Intervals:
    """The time of disjoint intervals in order that is also in one of the others."""
    return without(intervals, without(intervals, others))


def length(intervals: Intervals) -> float:
    """The time of disjoint intervals."""
    return sum(end - begin for begin, end in intervals)
