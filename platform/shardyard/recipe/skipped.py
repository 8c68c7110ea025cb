"""The steps that a recipe skips, from numbers and spans."""

from __future__ import annotations

from collections.abc import Sequence


def span_of(entry: int | str) -> range:
    """The steps of an entry of train.skip_steps: `1200`, or `1500-1700` with both ends."""
    if isinstance(entry, int):
        return range(entry, entry + 1)
    first, _, last = entry.partition("-")
    return range(int(first), int(last) + 1)


def skipped_steps(entries: Sequence[int | str]) -> frozenset[int]:
    """All steps of the entries of train.skip_steps."""
    return frozenset(step for entry in entries for step in span_of(entry))
