"""Where records begin in a block of JSON Lines, and the blocks in which this cannot be known."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Starts = npt.NDArray[np.int64]
NONE: Starts = np.empty(0, np.int64)
BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\f\v"
_OPEN, _CLOSE, _LINE = b"{}\n"
_RETURN = ord("\r")
# The end of one object and the beginning of the next on one line; in a single object they are part of a text.
_TWO_OBJECTS = re.compile(rb"\}[ \t\r\f\v]*\{")


class IrregularError(Exception):
    """The records of a file cannot be found by their bytes alone; the file is read from its start instead."""


class Finder(Protocol):
    """Finds the records of a kind of file."""

    @property
    def name(self) -> str:
        """What tells its results from those of other finders, and of other versions of itself."""

    @property
    def part_bytes(self) -> int | None:
        """Blocks end at multiples of so many bytes of the file; None where any block will do."""

    @property
    def has_ends(self) -> bool:
        """Whether records are pairs of the first byte and the byte after the last; else each ends with the next."""

    def find(self, block: bytes, *, first: bool, last: bool) -> tuple[Starts, int]:
        """The complete records of a block, [R] or [2R], and the length of the part of the block that they fill.

        Args:
            block: begins with a record.
            first: whether the block begins the file.
            last: whether it ends the file; all of it is then filled.

        Raises:
            IrregularError: the block is not regular.
        """


class JsonLines:
    """One object a line. Blank lines are no records; a byte order mark begins the file or not."""

    name = "json-lines-1"
    part_bytes = None
    has_ends = False

    def find(self, block: bytes, *, first: bool, last: bool) -> tuple[Starts, int]:
        length = len(block) if last else block.rfind(b"\n") + 1
        return self.starts(block[:length], first=first) if length else NONE, length

    def starts(self, block: bytes, *, first: bool) -> Starts:
        """The first byte of each line that is not blank, [R]."""
        skip = len(BOM) if first and block.startswith(BOM) else 0
        data = np.frombuffer(block, np.uint8)
        # Splitting is several times faster than comparing each byte.
        lengths = np.fromiter(map(len, block.split(b"\n")), np.int64)
        ends = np.cumsum(lengths + 1) - 1
        if data[-1] == _LINE:
            ends = ends[:-1]
        starts = np.empty_like(ends)
        starts[:1], starts[1:] = skip, ends[:-1] + 1
        kept = self._are_objects(block, data, starts, ends)
        # With one closing brace a line, no line can hold two objects.
        if block.count(b"}") > np.count_nonzero(kept):
            checked = 0
            for match in _TWO_OBJECTS.finditer(block):
                if match.start() >= checked:
                    checked = _check_line(block, match.start())
        return starts[kept].astype(np.int64)

    def _are_objects(self, block: bytes, data: Any, starts: Any, ends: Any) -> npt.NDArray[np.bool_]:
        """Which lines are objects; the others are blank."""
        last = np.maximum(ends - 1, 0)
        last = np.where((data[last] == _RETURN) & (last > 0), last - 1, last)
        plain = (ends > starts) & (data[np.minimum(starts, len(data) - 1)] == _OPEN) & (data[last] == _CLOSE)
        for line in np.flatnonzero(~plain).tolist():
            text = block[starts[line] : ends[line]].strip(_WHITE)
            if text and not (text.startswith(b"{") and text.endswith(b"}")):
                raise IrregularError
            plain[line] = bool(text)
        return np.asarray(plain, np.bool_)


def _check_line(block: bytes, position: int) -> int:
    """Refuse the line at a position if it holds several objects; returns where it ends."""
    begin, end = block.rfind(b"\n", 0, position) + 1, block.find(b"\n", position)
    end = end if end >= 0 else len(block)
    try:
        json.loads(block[begin:end].removeprefix(BOM))
    except ValueError as error:
        if "Extra data" in str(error):
            raise IrregularError from error
    return end
