"""Logs of a run, read from a cursor: only new lines are sent, and large files are read from the end."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypedDict

from shardyard.dashboard.index.files import names_below, opened_below, pread
from shardyard.redaction import without_forms

MOST_LINES = 5000
MOST_LINE_CHARACTERS = 4000
# Only the end of a larger file is searched; its lines have no numbers, because they are not counted.
MOST_SCANNED_BYTES = 64 * 1024**2
_BLOCK_BYTES = 256 * 1024
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_ERROR = re.compile(r"\b(?:ERROR|CRITICAL|FATAL|Traceback|panic)\b|\b\w*(?:Error|Exception)\b(?::|$)|^E\d{4}|failed:")
_WARNING = re.compile(r"\bWARN(?:ING)?\b|\b\w*Warning\b")
_RANK = re.compile(r"rank-(\d+)\.log")


def ranks_of(folder: Path) -> list[int]:
    """Ranks that have a log."""
    return sorted(int(found[1]) for name in names_below(folder, "logs") if (found := _RANK.fullmatch(name)))


def level_of(line: str) -> str:
    """error, warning or info, by the level names of loggers and Python."""
    if _ERROR.search(line):
        return "error"
    return "warning" if _WARNING.search(line) else "info"


LogLine = tuple[int | None, str, str]


class LogPart(TypedDict):
    """Lines of a log, each with number, text and level.

    cursor: for the lines after them. matches: the number of matching lines; left_out: those not included here.
    searched_from: the byte where the search began, if there was one.
    """

    lines: list[LogLine]
    cursor: int
    total_bytes: int
    matches: int
    left_out: int
    searched_from: int | None


def read_log(
    folder: Path, rank: str, *, cursor: int = -1, search: str = "", errors: bool = False, lines: int = 500
) -> LogPart:
    """Lines of a log.

    Args:
        rank: "driver", or the number of a rank.
        cursor: the end of the previous answer; -1 for the last lines.
        search: only lines that contain this text, case-insensitive.
        errors: only lines about errors.

    Raises:
        FileNotFoundError: the log does not exist.
        OSError: it cannot be read.
    """
    name = "driver.log" if rank == "driver" else f"rank-{int(rank)}.log"
    most = max(1, min(lines, MOST_LINES))
    with opened_below(folder, "logs", name) as descriptor:
        size = os.fstat(descriptor).st_size
        if cursor > size:
            cursor = -1  # replaced by a shorter file
        filtering = bool(search) or errors
        if cursor < 0:
            begin = max(0, size - MOST_SCANNED_BYTES) if filtering else _tail_begin(descriptor, size, most)
        else:
            begin = max(cursor, size - MOST_SCANNED_BYTES)
        data = pread(descriptor, size - begin, begin)
        number = _line_number(descriptor, begin)
    # A line without a newline may still grow; a finished file may lack the final newline.
    end = data.rfind(b"\n") + 1
    if cursor < 0 and begin > 0 and filtering:
        cut = data.find(b"\n") + 1
        data, begin, end = data[cut:], begin + cut, end - cut
        number = None
    found = _lines(data[:end], number, search.lower(), errors)
    # Current logs contain no secrets; those of older runs may.
    kept = [(line_number, without_forms(text), level) for line_number, text, level in found[-most:]]
    return {
        "lines": kept,
        "cursor": begin + end,
        "total_bytes": size,
        "matches": len(found),
        "left_out": len(found) - len(kept),
        "searched_from": begin if filtering else None,
    }


def _lines(data: bytes, number: int | None, search: str, errors: bool) -> list[LogLine]:
    found: list[LogLine] = []
    for index, line in enumerate(data.split(b"\n")[:-1]):
        # Text overwritten by a progress bar is not shown.
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
        text = _ANSI.sub("", text)
        if search and search not in text.lower():
            continue
        level = level_of(text[:MOST_LINE_CHARACTERS])
        if errors and level != "error":
            continue
        if len(text) > MOST_LINE_CHARACTERS:
            text = f"{text[:MOST_LINE_CHARACTERS]} … ({len(text) - MOST_LINE_CHARACTERS} characters more)"
        found.append((None if number is None else number + index, text, level))
    return found


def _tail_begin(descriptor: int, size: int, lines: int) -> int:
    """The offset of the last `lines` lines, limited by the maximum scanned size."""
    position, breaks = size, 0
    while position > 0 and size - position < MOST_SCANNED_BYTES:
        count = min(_BLOCK_BYTES, position)
        position -= count
        block = pread(descriptor, count, position)
        breaks += block.count(b"\n")
        if breaks > lines:
            break
    if position == 0 and breaks <= lines:
        return 0
    data = pread(descriptor, min(size - position, MOST_SCANNED_BYTES), position)
    parts = data.split(b"\n")
    wanted = lines + 1 if data.endswith(b"\n") else lines
    return position + sum(len(part) + 1 for part in parts[: max(0, len(parts) - wanted)])


def _line_number(descriptor: int, begin: int) -> int | None:
    if begin > MOST_SCANNED_BYTES:
        return None
    number, position = 1, 0
    while position < begin:
        block = pread(descriptor, min(1 << 22, begin - position), position)
        number += block.count(b"\n")
        position += len(block)
    return number
