"""Tables that fit the terminal without truncation: wide, with wrapped text, with names on separate lines, or one block
per row. Words, ids and numbers are never truncated or broken.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

GAP = 2
INDENT = 2
# Cells up to this width stay on one line; longer text may wrap down to it.
TEXT_WIDTH = 20
Row = Sequence[str]


def layout(columns: Row, rows: Sequence[Row], width: int) -> list[tuple[str, bool]]:
    """The lines of a table in at most `width` columns, as far as words allow, each with a flag for header lines."""
    rows = [[str(cell) for cell in row] for row in rows]
    if (widths := _widths(columns, rows, width)) is not None:
        return list(_table(columns, rows, widths))
    if len(columns) == 2:
        return list(_pairs(columns, rows, width))
    if len(columns) > 2 and (widths := _widths(columns[1:], [row[1:] for row in rows], width - INDENT)) is not None:
        return list(_folded(columns, rows, widths))
    return list(_blocks(columns, rows, width))


def _widths(columns: Row, rows: Sequence[Row], width: int) -> list[int] | None:
    """A width for each column, or None if they do not fit side by side."""
    cells = list(zip(columns, *rows, strict=True))
    natural = [max(map(_longest_line, column)) for column in cells]
    least = [
        max(min(wanted, TEXT_WIDTH), *map(_longest_word, column)) for wanted, column in zip(natural, cells, strict=True)
    ]
    room = width - GAP * (len(columns) - 1)
    if sum(natural) <= room:
        return natural
    if sum(least) > room:
        return None
    # Remaining space is divided evenly among the columns that need more.
    widths = list(least)
    left = room - sum(least)
    while left > 0 and (short := [index for index, wanted in enumerate(natural) if widths[index] < wanted]):
        share = max(1, left // len(short))
        for index in short:
            more = min(share, natural[index] - widths[index], left)
            widths[index] += more
            left -= more
    return widths


def _table(columns: Row, rows: Sequence[Row], widths: Sequence[int], indent: int = 0) -> Iterator[tuple[str, bool]]:
    if any(columns):
        yield from ((line, True) for line in _lines(columns, widths, indent))
    for row in rows:
        yield from ((line, False) for line in _lines(row, widths, indent))


def _folded(columns: Row, rows: Sequence[Row], widths: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Each name on a separate line, the other cells below it."""
    yield columns[0], True
    yield from ((line, True) for line in _lines(columns[1:], widths, INDENT))
    for name, *cells in rows:
        yield name, False
        yield from ((line, False) for line in _lines(cells, widths, INDENT))


def _pairs(columns: Row, rows: Sequence[Row], width: int) -> Iterator[tuple[str, bool]]:
    """Names and values; a value with a word too long to fit beside its name goes below it."""
    label = max(cell_len(row[0]) for row in (columns, *rows))
    room = width - label - GAP
    if any(columns):
        beside = room >= max(TEXT_WIDTH, cell_len(columns[1]))
        yield (" " * GAP).join((columns[0].ljust(label), columns[1])).rstrip() if beside else columns[0], True
    for name, value in rows:
        if room >= max(TEXT_WIDTH, _longest_word(value)):
            yield from ((line, False) for line in _lines((name, value), (label, room), 0))
        else:
            yield name, False
            yield from ((f"{' ' * INDENT}{line}", False) for line in wrapped(value, width - INDENT))


def _blocks(columns: Row, rows: Sequence[Row], width: int) -> Iterator[tuple[str, bool]]:
    """Each row as lines of `column value`; empty cells are omitted."""
    label = max(map(cell_len, columns[1:]), default=0)
    for row in rows:
        yield row[0], True
        for column, cell in zip(columns[1:], row[1:], strict=True):
            room = width - INDENT - label - GAP
            if not cell:
                continue
            if room >= min(max(TEXT_WIDTH, _longest_word(cell)), _longest_line(cell)):
                yield from ((line, False) for line in _lines((column, cell), (label, room), INDENT))
            else:  # the value goes below its name
                yield f"{' ' * INDENT}{column}", False
                yield from ((f"{' ' * 2 * INDENT}{line}", False) for line in wrapped(cell, width - 2 * INDENT))


def _lines(cells: Row, widths: Sequence[int], indent: int) -> Iterator[str]:
    columns = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for index in range(max(map(len, columns))):
        parts = [column[index] if index < len(column) else "" for column in columns]
        padded = [part + " " * (width - cell_len(part)) for part, width in zip(parts, widths, strict=True)]
        yield (" " * indent + (" " * GAP).join(padded)).rstrip()


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken between words only; at least one."""
    found: list[str] = []
    for line in text.splitlines() or [""]:
        found += textwrap.wrap(line, max(1, width), break_long_words=False, break_on_hyphens=False) or [""]
    return found


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)
