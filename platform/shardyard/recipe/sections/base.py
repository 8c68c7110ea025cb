"""The base of all sections of a recipe: strictness, and a description for each field."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

REQUIRED: Any = ...
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
BYTES_PATTERN = r"^\d+(\.\d+)? ?([KMGT]i?)?B$"


class Section(BaseModel):
    """Base of all sections: unknown keys fail, types are not coerced, values never change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


def described(default: Any, description: str, unit: str = "", **constraints: Any) -> Any:
    extra: dict[str, JsonValue] | None = {"unit": unit} if unit else None
    return Field(default, description=description, json_schema_extra=extra, **constraints)
