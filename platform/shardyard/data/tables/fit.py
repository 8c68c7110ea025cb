"""Values of JSON as the features of a table store them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import datasets
from datasets.utils.json import ujson_dumps

_TEXTS = ("string", "large_string", "string_view")


class MisfitError(ValueError):
    """A value that is not what its column holds."""


def fit(value: Any, feature: Any) -> Any:
    """The stored form of a value.

    Raises:
        MisfitError: it is of another kind.
    """
    if value is None:
        return None
    if isinstance(feature, datasets.Json):
        return ujson_dumps(value)
    if isinstance(feature, datasets.Value):
        return _scalar(value, feature.dtype)
    if isinstance(feature, Mapping):
        return _struct(value, feature)
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is None:
        return value
    if not isinstance(value, list):
        raise MisfitError(f"{_kind(value)} where others hold a list")
    return [fit(item, inner) for item in value]


def _struct(value: Any, feature: Mapping[str, object]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise MisfitError(f"{_kind(value)} where others hold fields")
    if more := [str(name) for name in value if name not in feature]:
        raise MisfitError(f"the field {more[0]!r}, which the first rows do not have")
    return {name: fit(value.get(name), inner) for name, inner in feature.items()}


def _scalar(value: Any, dtype: str) -> Any:
    if isinstance(value, dict | list):
        raise MisfitError(f"{_kind(value)} where others hold {dtype}")
    if dtype in _TEXTS:
        return value if isinstance(value, str) else json.dumps(value)
    try:
        if dtype.startswith(("int", "uint")):
            return whole(value)
        if dtype.startswith(("float", "double")):
            return float(value)
    except (ValueError, OverflowError) as error:
        raise MisfitError(f"{value!r:.40}, which is no number") from error
    if dtype == "bool" and not isinstance(value, bool):
        raise MisfitError(f"{value!r:.40} where others hold true or false")
    return value


def whole(value: Any) -> int:
    """A whole number, also of a text or of a float without a fraction.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.lstrip("+-").isdigit() else whole(float(value))
    if float(value) != int(value):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number")
