"""Where records begin in a block of JSON Lines, and the blocks in which this cannot be known."""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Starts = npt.NDArray[np.int64]
_WHITE = b" \t\r\f\v"
_OPEN, _CLOSE, _LINE = b"{}\n"
_RETURN = ord("\r")
_BOM = b"\xef\xbb\xbf"
# The end of one object and the beginning of the next on one line; in a single object they are part of a text.
_TWO_OBJECTS = re.compile(rb"\}[ \t\r\f\v]*\{")


class IrregularError(Exception):
    """The records of a file cannot be found by their bytes alone; the file is read from its start instead."""


class Finder(Protocol):
    """Finds the records of a kind of file."""

    name: str

    def complete(self, block: bytes) -> int:
        """The length of the part of a block that ends with a complete record; the block begins with a record."""

    def starts(self, block: bytes, *, first: bool) -> Starts:
        """The first byte of each record of a block, which ends with a complete record or with the file, [R].

        Args:
            first: whether the block begins the file.

        Raises:
            IrregularError: the block is not regular.
        """


class JsonLines:
    """One object a line. Blank lines are no records; a byte order mark begins the file or not."""

    name = "json-lines-1"

    def complete(self, block: bytes) -> int:
        return block.rfind(b"\n") + 1

    def starts(self, block: bytes, *, first: bool) -> Starts:
        skip = len(_BOM) if first and block.startswith(_BOM) else 0
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
        json.loads(block[begin:end].removeprefix(_BOM))
    except ValueError as error:
        if "Extra data" in str(error):
            raise IrregularError from error
    return end
