"""Lengths in steps, given as steps or as a share of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True)
class StepsOrShare:
    """Annotation of a field that holds steps (a whole number, at least `least`) or a share of the run, below 1."""

    least: int

    @property
    def rule(self) -> str:
        """The rule for a value, in words."""
        return f"must be whole steps from {self.least} on, or a share of the run such as 0.1"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        return {"anyOf": [{"type": "integer", "minimum": self.least}, share]}

    def _checked(self, value: Any) -> int | float:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= self.least
        if whole or (isinstance(value, float) and 0 < value < 1):
            return value  # type: ignore[no-any-return]
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
