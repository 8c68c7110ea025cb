"""Halves of surrogate pairs: JSON can escape them, and UTF-8, Arrow and tokenizers cannot hold them."""

from __future__ import annotations

import json
import re
from typing import Any

HALF = "half of a surrogate pair, which is no character"
_HALVES = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
# An escape: a pair, a half, or any other, of which the backslash of `\\` begins none.
_ESCAPES = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)


def may_have_halves(text: bytes) -> bool:
    """Whether JSON escapes surrogates, in pairs or not."""
    return _ESCAPED.search(text) is not None


def with_pairs(text: bytes) -> bytes:
    """JSON in which each half is replaced by U+FFFD; pairs are kept."""
    return _ESCAPES.sub(lambda found: rb"\ufffd" if found[1] else found[0], text)


def loads(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or escapes halves of pairs.
    """
    value = json.loads(text)
    escape = "\\u" if isinstance(text, str) else b"\\u"
    if escape in text and without_halves(value) is not value:  # type: ignore[operator]
        raise ValueError(HALF)
    return value


def without_halves(value: Any) -> Any:
    """A value of JSON in which each half is replaced by U+FFFD; the value itself if it has none."""
    if isinstance(value, str):
        return value if value.isascii() or not _HALVES.search(value) else _HALVES.sub("\ufffd", value)
    if isinstance(value, list):
        items = [without_halves(item) for item in value]
        return value if all(map(_same, items, value)) else items
    if isinstance(value, dict):
        fields = {without_halves(key): without_halves(item) for key, item in value.items()}
        same = all(map(_same, fields, value)) and all(map(_same, fields.values(), value.values()))
        return value if same and len(fields) == len(value) else fields
    return value


def _same(one: object, other: object) -> bool:
    return one is other
