"""What each step did: documents and bytes before and after, removals by reason, and the first of them as examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

EXAMPLES = 3
EXAMPLE_CHARACTERS = 300


class Example(TypedDict):
    """A removed document: its source, the reason, and its beginning; for duplicates that of the kept one too."""

    source: str
    reason: str
    text: str
    kept: str | None


class StepCounts(TypedDict):
    """Counts of one step. `removed_bytes` are those of the removed documents' texts, `bytes` of what is left."""

    documents: int
    removed: int
    removed_bytes: int
    changed: int
    bytes: int
    reasons: dict[str, int]
    examples: list[Example]


class SourceCounts(TypedDict):
    """What was read of a source, and the rows that could not be; `kept` documents are in the output."""

    documents: int
    bytes: int
    unusable: int
    empty: int
    repaired: int
    named: list[str]
    kept: int
    kept_bytes: int


def no_step() -> StepCounts:
    return {"documents": 0, "removed": 0, "removed_bytes": 0, "changed": 0, "bytes": 0, "reasons": {}, "examples": []}


def no_source() -> SourceCounts:
    return {
        "documents": 0,
        "bytes": 0,
        "unusable": 0,
        "empty": 0,
        "repaired": 0,
        "named": [],
        "kept": 0,
        "kept_bytes": 0,
    }


def removed(counts: StepCounts, reason: str, source: str, text: str, kept: str | None = None) -> None:
    """Count a removed document."""
    counts["removed"] += 1
    counts["removed_bytes"] += len(text.encode())
    counts["reasons"][reason] = counts["reasons"].get(reason, 0) + 1
    if len(counts["examples"]) < EXAMPLES:
        shown = None if kept is None else kept[:EXAMPLE_CHARACTERS]
        counts["examples"].append(
            {"source": source, "reason": reason, "text": text[:EXAMPLE_CHARACTERS], "kept": shown}
        )


def added_steps(parts: Iterable[StepCounts]) -> StepCounts:
    """The sum over pieces in their order."""
    total = no_step()
    for one in parts:
        for name in ("documents", "removed", "removed_bytes", "changed", "bytes"):
            total[name] += one[name]
        for reason, count in one["reasons"].items():
            total["reasons"][reason] = total["reasons"].get(reason, 0) + count
        total["examples"] = [*total["examples"], *one["examples"]][:EXAMPLES]
    total["reasons"] = dict(sorted(total["reasons"].items(), key=lambda found: (-found[1], found[0])))
    return total


def added_sources(parts: Iterable[SourceCounts]) -> SourceCounts:
    """The sum over pieces in their order."""
    total = no_source()
    for one in parts:
        for name in ("documents", "bytes", "unusable", "empty", "repaired", "kept", "kept_bytes"):
            total[name] += one[name]
        total["named"] = [*total["named"], *one["named"]][:EXAMPLES]
    return total
