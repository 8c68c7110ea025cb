"""Bytes, counts, seconds and FLOPs to and from text. Imports no other module of Shardyard."""

from __future__ import annotations

import re

_BINARY = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B$")


def parse_bytes(text: str) -> int:
    """`80GiB` → 85899345920, `1.5 MB` → 1500000.

    Raises:
        ValueError: the text is not a number with a unit of bytes.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it as 80GiB or 500MB")
    number, prefix, binary = match.groups()
    return int(float(number) * (_BINARY if binary else _DECIMAL)[prefix])


_DURATION = re.compile(r"^(\d+(?:\.\d+)?) ?([smh])$")


def parse_seconds(text: str) -> float:
    """`30m` → 1800.0; s, m and h are seconds, minutes and hours.

    Raises:
        ValueError: the text is not a number with one of these units.
    """
    match = _DURATION.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time; write it as 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def format_bytes(count: float) -> str:
    """1536 → `1.5 KiB`; binary prefixes, as memory is counted."""
    for prefix in ("", "Ki", "Mi", "Gi"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if not prefix else f"{count:.1f} {prefix}B"
        count /= 1024
    return f"{count:.1f} TiB"


def format_count(count: float, digits: int = 1) -> str:
    """124439808 → `124.4M`; decimal suffixes, as parameters, tokens and FLOPs are counted."""
    for suffix in ("", "K", "M", "B", "T", "P", "E"):
        if abs(count) < 1000:
            return f"{count:.0f}" if not suffix and float(count).is_integer() else f"{count:.{digits}f}{suffix}"
        count /= 1000
    return f"{count:.{digits}f}Z"


def format_seconds(seconds: float) -> str:
    """0.0123 → `12 ms`, 75 → `1m15s`, 90000 → `1d01h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600:02d}h"
