"""Rows that nothing can be learned from: left out, repaired or refused by `data.on_error`, counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe.schema import OnError

# Fewer unusable rows say nothing about the others.
FEW = 10
# Rows that are named; the others are counted.
NAMED = 5


class LeftOutCounts(TypedDict):
    """Counts of one source: rows that cannot be used, that have no target, and that were repaired; the first named.

    `empty_streams` read the whole source, because their share of it has nothing to learn from. `filtered` are the
    documents that data.filters removed, by step and reason.
    """

    filtered: dict[str, int]
    unusable: int
    without_target: int
    repaired: int
    empty_streams: int
    named: list[str]


class LeftOut:
    """What happens to unusable rows of one (stream, source), and how many there were since reading began."""

    def __init__(self, on_error: OnError = "skip", error_limit: float = 1.0) -> None:
        self.on_error, self.error_limit = on_error, error_limit
        self.num_read = 0
        self.num_unusable = self.num_without_target = self.num_repaired = self.num_empty_streams = 0
        self.named: list[str] = []
        self.num_filtered: dict[str, int] = {}

    def unusable(self, place: str, error: UnusableRowError) -> None:
        """Count a row that is left out.

        Raises:
            UnusableRowError: `on_error` is `stop`.
            DataError: more than `error_limit` of the rows that were read are unusable.
        """
        if self.on_error == "stop":
            raise UnusableRowError(
                f"{place}: {error}. Correct or remove the row, or set data.on_error to skip or repair."
            ) from error
        self.num_unusable += 1
        self._name(f"{place}: {error}")
        if self.num_unusable >= FEW and self.num_unusable > self.error_limit * max(self.num_read, self.num_unusable):
            raise DataError(
                f"{self.num_unusable} of {self.num_read} rows cannot be used, more than data.error_limit "
                f"{self.error_limit:g} allows: {'; '.join(self.named)}; …. Correct the rows, or raise the limit."
            )

    def without_target(self, place: str, why: str = "no target within data.sequence_length") -> None:
        """Count a row whose target does not fit into data.sequence_length, or that has none."""
        self.num_without_target += 1
        self._name(f"{place}: {why}")

    def filtered(self, reason: str) -> None:
        """Count a row that data.filters removes."""
        self.num_filtered[reason] = self.num_filtered.get(reason, 0) + 1

    def repaired(self, place: str) -> None:
        """Count a repaired row."""
        self.num_repaired += 1
        self._name(f"{place}: repaired")

    def counts(self) -> LeftOutCounts:
        """The counts so far."""
        return {
            "filtered": dict(self.num_filtered),
            "unusable": self.num_unusable,
            "without_target": self.num_without_target,
            "repaired": self.num_repaired,
            "empty_streams": self.num_empty_streams,
            "named": list(self.named),
        }

    def in_words(self) -> str:
        """`60 rows left out (train.jsonl, row 1: no target …; …)`; "" if there are none."""
        number = self.num_unusable + self.num_without_target
        left_out = [left_out_in_words(number, self.named)] if number else []
        filtered = [filtered_in_words(self.num_filtered)] if self.num_filtered else []
        return "; ".join([*left_out, *filtered])

    def _name(self, what: str) -> None:
        if len(self.named) < NAMED:
            self.named.append(what)


def left_out_in_words(number: int, named: list[str]) -> str:
    """`60 rows were left out: train.jsonl, row 1: no target …; …`."""
    rows = f"{number} row was" if number == 1 else f"{number} rows were"
    shown = "; ".join(named[:NAMED])
    more = "; …" if number > len(named) else ""
    return f"{rows} left out: {shown}{more}"


def filtered_in_words(filtered: Mapping[str, int]) -> str:
    """`60 rows were removed by filters: c4: lorem ipsum (40), length: …`; frequent reasons first."""
    number = sum(filtered.values())
    ordered = sorted(filtered.items(), key=lambda found: (-found[1], found[0]))
    shown = ", ".join(f"{reason} ({count})" for reason, count in ordered[:NAMED])
    more = ", …" if len(ordered) > NAMED else ""
    return f"{number} {'row was' if number == 1 else 'rows were'} removed by filters: {shown}{more}"


def added(all_counts: list[LeftOutCounts]) -> LeftOutCounts:
    """The sum of several counts."""
    filtered = Counter[str]()
    for one in all_counts:
        filtered.update(one.get("filtered", {}))  # Earlier versions had no filters.
    return {
        "filtered": dict(sorted(filtered.items())),
        "unusable": sum(one["unusable"] for one in all_counts),
        "without_target": sum(one["without_target"] for one in all_counts),
        "repaired": sum(one["repaired"] for one in all_counts),
        "empty_streams": sum(one["empty_streams"] for one in all_counts),
        "named": [text for one in all_counts for text in one["named"]][:NAMED],
    }
