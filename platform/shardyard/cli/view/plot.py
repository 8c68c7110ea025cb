"""Curves as text: a plot of braille dots with axes, and one line of bars. Plain ASCII without UTF-8."""

from __future__ import annotations

import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = ".:-=+*#@"
# Bits of the dots of a braille character, by row and column (Unicode 16, block Braille Patterns).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800

Point = tuple[float, float]


def bars(values: Sequence[float | None], width: int, *, ascii_only: bool = False) -> str:
    """Means of at most `width` equal intervals as bars of eight heights; values that are not finite leave gaps."""
    shown = ASCII_BARS if ascii_only else BARS
    count = min(width, len(values))
    groups = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [_mean(group) for group in groups]
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(" " if mean is None else shown[int((mean - low) / span * 7)] for mean in means)


def plot(points: Sequence[Point], width: int, height: int, *, ascii_only: bool = False, log: bool = False) -> list[str]:
    """Lines of a plot of (x, y), `width` characters wide including labels and `height` high including the x axis.

    Every point has a dot, so that a spike of one point is visible. `log`: a logarithmic y axis, if all values are
    positive.
    """
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not kept or height < 3:
        return []
    log = log and all(y > 0 for _, y in kept)
    heights = [math.log10(y) if log else y for _, y in kept]
    low, high = min(heights), max(heights)
    labels = [_label(10**value if log else value) for value in (high, (high + low) / 2, low)]
    margin = max(map(len, labels)) + 1
    columns, rows = max(2, width - margin - 1), height - 1
    cells = _cells([x for x, _ in kept], heights, columns, rows)
    lines = []
    for row in range(rows):
        label = labels[0] if row == 0 else labels[2] if row == rows - 1 else labels[1] if row == rows // 2 else ""
        body = "".join(_character(bits, ascii_only=ascii_only) for bits in cells[row])
        lines.append(f"{label:>{margin}}{'|' if ascii_only else '│'}{body}".rstrip())
    first, last = (f"{value:,.0f}" for value in (min(x for x, _ in kept), max(x for x, _ in kept)))
    lines.append(f"{'':{margin + 1}}{first}{last:>{max(1, columns - len(first))}}")
    return lines


def _cells(xs: list[float], ys: list[float], columns: int, rows: int) -> list[list[int]]:
    """The dots of each character, [rows][columns]."""
    cells = [[0] * columns for _ in range(rows)]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)
    for x, y in zip(xs, ys, strict=True):
        across = round((x - left) / ((right - left) or 1.0) * (2 * columns - 1))
        down = round((high - y) / ((high - low) or 1.0) * (4 * rows - 1))
        cells[down // 4][across // 2] |= _DOTS[down % 4][across % 2]
    return cells


def _character(bits: int, *, ascii_only: bool) -> str:
    if not bits:
        return " "
    if not ascii_only:
        return chr(_BLANK + bits)
    return "'" if bits & 0x1B and not bits & 0xE4 else "." if bits & 0xE4 and not bits & 0x1B else ":"


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else None


def _label(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
