"""Reading typed values from untrusted JSON files: a value of the expected type, or None.

Imports only the standard library, because the entry points of waiting jobs import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def text(value: object) -> str | None:
    """A string."""
    return value if isinstance(value, str) else None


def integer(value: object) -> int | None:
    """A count; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    return int(value)


def number(value: object) -> float | None:
    """A number, possibly not finite."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def finite(value: object) -> float | None:
    """A number that is finite."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def switch(value: object) -> bool | None:
    """True or false."""
    return value if isinstance(value, bool) else None


def integers(value: object) -> tuple[int, ...] | None:
    """A list of counts."""
    return tuple(one for item in value if (one := integer(item)) is not None) if isinstance(value, list) else None


def objects(value: object) -> list[dict[str, object]] | None:
    """A list of objects."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else None


def texts_by_name(value: object) -> dict[str, list[str]] | None:
    """Lists of strings by name."""
    if not isinstance(value, dict):
        return None
    lists = {name: items for name, items in value.items() if isinstance(items, list)}
    return {name: [one for one in items if isinstance(one, str)] for name, items in lists.items()}


def integers_by_name(value: object) -> dict[str, int] | None:
    """Counts by name."""
    if not isinstance(value, dict):
        return None
    return {name: count for name, one in value.items() if (count := integer(one)) is not None}


# Reader of a field, by its annotation.
READERS: dict[str, Callable[[object], object]] = {
    "str": text,
    "str | None": text,
    "int": integer,
    "int | None": integer,
    "float": number,
    "float | None": number,
    "bool": switch,
    "tuple[int, ...]": integers,
}
