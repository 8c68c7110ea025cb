"""Columns and fields of a source, and whether their features hold values of a kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import datasets

from shardyard.data.sources.files import MEDIA
from shardyard.objectives.spec import Kind

_LISTS = (list, datasets.List, datasets.LargeList)
# Names of a segment's text and end, as Whisper, the pipelines of transformers, WhisperX and NeMo write them.
SEGMENT_TEXTS = ("text", "word", "segment", "sentence")
SEGMENT_ENDS = ("end", "timestamp", "timestamps")
_TEXT_TYPES = ("string", "large_string", "string_view")


def column_path(names: Iterable[str], column: str) -> list[str]:
    """A column and the fields within it; a column whose name contains the dot takes precedence."""
    return [column] if column in names else column.split(".")


def feature_of(features: Any, column: str) -> Any | None:
    """The feature of a column or of a field within one; None if it does not exist."""
    found: Any = features
    for part in column_path(features, column):
        if isinstance(found, datasets.Translation):
            found = dict.fromkeys(found.languages, datasets.Value("string"))
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def type_of(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or "nested values")


def is_kind(feature: Any, kind: Kind) -> bool:
    """Images and audio are the features of `datasets`, a struct with `bytes`, or plain bytes. A column of JSON may hold
    values of any kind, which are checked row by row."""
    if isinstance(feature, datasets.Json):
        return True
    if kind == "text":
        return type_of(feature) in _TEXT_TYPES
    if kind == "label":
        return "int" in type_of(feature)
    if kind == "number":
        return _is_number(feature)
    if kind in ("messages", "texts", "tags", "numbers"):
        return _is_list(feature, kind)
    if kind == "segments":
        fields = _item(feature) if isinstance(feature, _LISTS) else None
        return (
            isinstance(fields, Mapping) and bool(fields.keys() & SEGMENT_ENDS) and bool(fields.keys() & SEGMENT_TEXTS)
        )
    if kind == "answers":
        fields = _item(feature) if isinstance(feature, _LISTS) else feature
        return isinstance(fields, Mapping) and {"text", "answer_start"} <= fields.keys()
    media = datasets.Image if kind == "image" else datasets.Audio
    return isinstance(feature, media) or type_of(feature) == "binary" or _has_bytes(feature)


def may_be(feature: Any, kind: Kind) -> bool:
    """Whether other values can be read as of this kind: numbers and dates as texts, names of files as their
    content, names of classes as their numbers."""
    if not isinstance(feature, datasets.Value):
        return False
    if kind in ("label", "number") and type_of(feature).startswith(("bool", "float", "double", "decimal")):
        return True
    return kind == "text" or (kind in (*MEDIA, "label") and type_of(feature) in _TEXT_TYPES)


def _is_number(feature: Any) -> bool:
    return any(kind in type_of(feature) for kind in ("int", "float"))


def _is_list(feature: Any, kind: Kind) -> bool:
    """Whether a column holds lists, whose items are texts, or whole numbers or names, if the kind says so."""
    if not isinstance(feature, _LISTS):
        return False
    item = _item(feature)
    if kind == "texts":
        return type_of(item) in _TEXT_TYPES
    if kind == "numbers":
        return _is_number(item)
    return kind == "messages" or type_of(item) in _TEXT_TYPES or "int" in type_of(item)


def _item(feature: Any) -> Any:
    """The feature of the items of a list."""
    return feature[0] if isinstance(feature, list) else feature.feature


def _has_bytes(feature: Any) -> bool:
    return isinstance(feature, dict) and "bytes" in feature
