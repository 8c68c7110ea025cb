"""Values of a column as its feature types them: JSON text decoded, absent keys left out.

`datasets` stores fields of more than one shape as JSON text (`Json()`), and fills keys that some rows lack with null.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import datasets

from shardyard.data.tables.fit import whole
from shardyard.data.tables.surrogates import loads
from shardyard.errors import UnusableRowError
from shardyard.objectives.spec import Kind

Decode = Callable[[Any], Any]
_TEXT_TYPES = ("string", "large_string", "string_view")
# A key of a message that may be null on purpose: an answer that only calls tools.
_MAY_BE_NULL = ("content", "value")


def decoder(feature: Any, *, prune: bool = False, kept: tuple[str, ...] = _MAY_BE_NULL) -> Decode | None:
    """A function from a stored value of this feature to its value; None if they are the same.

    Args:
        prune: leave out null fields of structs, which stand for keys that a row does not have. Nulls within JSON text
            are kept: somebody wrote them.
        kept: fields of the outermost structs that are kept even if they are null.
    """
    if isinstance(feature, datasets.Json):
        return _json
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _each(decoder(feature.feature, prune=prune, kept=kept))
    if isinstance(feature, list) and len(feature) == 1:
        return _each(decoder(feature[0], prune=prune, kept=kept))
    if isinstance(feature, Mapping):
        return _struct({name: decoder(inner, prune=prune, kept=()) for name, inner in feature.items()}, prune, kept)
    return None


def chained(first: Decode, second: Decode) -> Decode:
    """One after the other."""
    return lambda value: second(first(value))


def as_kind(kind: Kind | None, feature: Any, seen: Any = None) -> Decode | None:
    """A function from a value of this feature to one of the kind; None if they are the same.

    Args:
        seen: the feature that the first values have, where all are stored as texts.
    """
    dtype = str(getattr(feature, "dtype", ""))
    if kind == "text" and dtype not in _TEXT_TYPES:
        return as_text
    if kind == "label" and "int" not in dtype:
        return as_class if str(getattr(seen, "dtype", "string")) in _TEXT_TYPES else as_whole
    return as_number if kind == "number" and not dtype.startswith(("int", "uint", "float")) else None


def as_text(value: Any) -> str | None:
    """Digits, dates, booleans and bytes of UTF-8 as texts.

    Raises:
        UnusableRowError: it is no single value.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, datetime.date | datetime.time | Decimal):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UnusableRowError(f"no UTF-8 at byte {error.start + 1}") from error
    raise UnusableRowError("no text where text is read", f"{value!r:.60}")


def as_class(value: Any) -> int | str | None:
    """The number of a class, or its name; None of an empty text.

    Raises:
        UnusableRowError: it is neither.
    """
    if isinstance(value, str) and value.strip():
        try:
            return whole(value)
        except (ValueError, OverflowError):
            return value.strip()
    return as_whole(value)


def as_whole(value: Any) -> int | None:
    """A whole number, of a text; None of an empty one.

    Raises:
        UnusableRowError: it is none.
    """
    if value is None or value == "":
        return None
    try:
        return whole(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableRowError("no whole number where one is read", f"{value!r:.60}") from error


def as_number(value: Any) -> float | None:
    """A number, of a text; None of an empty one.

    Raises:
        UnusableRowError: it is none.
    """
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UnusableRowError("no number where one is read", f"{value!r:.60}") from error


def _json(value: Any) -> Any:
    if not isinstance(value, str | bytes):
        return value
    return loads(value)


def _each(decode: Decode | None) -> Decode | None:
    if decode is None:
        return None
    return lambda values: values if values is None else [decode(value) for value in values]


def _struct(decoders: Mapping[str, Decode | None], prune: bool, kept: tuple[str, ...]) -> Decode | None:
    if not prune and not any(decoders.values()):
        return None

    def read(value: Any) -> Any:
        if value is None:
            return None
        present = ((name, inner) for name, inner in value.items() if not prune or inner is not None or name in kept)
        return {name: (decode(inner) if (decode := decoders.get(name)) else inner) for name, inner in present}

    return read
