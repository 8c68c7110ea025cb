"""Lengths in steps, given as steps or as a share of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from shardyard.units import parse_seconds


@dataclass(frozen=True)
class StepsOrShare:
    """Annotation of a field that holds steps (a whole number, at least `least`) or a share of the run, below 1.

    timed: or a time such as 30m.
    """

    least: int
    timed: bool = False

    @property
    def rule(self) -> str:
        """The rule for a value, in words."""
        more = ", or a time of at least a second such as 90s, 30m or 2h" if self.timed else ""
        return f"must be whole steps from {self.least} on, or a share of the run such as 0.1{more}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        time = [{"type": "string", "pattern": r"^\d+(\.\d+)? ?[smh]$"}] if self.timed else []
        return {"anyOf": [{"type": "integer", "minimum": self.least}, share, *time]}

    def _checked(self, value: Any) -> int | float | str:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= self.least
        if whole or (isinstance(value, float) and 0 < value < 1):
            return value  # type: ignore[no-any-return]
        if self.timed and isinstance(value, str):
            with contextlib.suppress(ValueError):
                if parse_seconds(value) >= 1:
                    return value
        raise PydanticCustomError("steps_or_share", "{rule}", {"rule": self.rule})


def in_steps(value: float, steps: int, *, most: int | None = None) -> int:
    """A length in whole steps, for a run of `steps`; a share is rounded to at least one step and at most `most`."""
    if isinstance(value, int):
        return value
    found = max(1, round(value * steps))
    return found if most is None else min(found, most)


def decay_steps(fraction: float, steps: int) -> int:
    """The steps of the final decay of wsd."""
    return max(1, round(fraction * steps))


def span_of(entry: int | str) -> range:
    """The steps of an entry of train.skip_steps: `1200`, or `1500-1700` with both ends."""
    if isinstance(entry, int):
        return range(entry, entry + 1)
    first, _, last = entry.partition("-")
    return range(int(first), int(last) + 1)


def skipped_steps(entries: Sequence[int | str]) -> frozenset[int]:
    """All steps of the entries of train.skip_steps."""
    return frozenset(step for entry in entries for step in span_of(entry))
