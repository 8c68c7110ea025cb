"""Where records begin in a block of CSV or TSV: at line ends that lie in no quoted cell."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shardyard.data.index.records import BOM, NONE, IrregularError, Starts
from shardyard.data.tables.cells import Dialect

_LINE, _RETURN, _QUOTE = b'\n\r"'


@dataclass(frozen=True)
class Cells:
    """Records as the csv module divides them. The header and blank lines are no records."""

    dialect: Dialect
    part_bytes = None
    has_ends = False

    @property
    def name(self) -> str:
        return f"cells-1 {self.dialect.delimiter!r} {self.dialect.quoted}"

    def find(self, block: bytes, *, first: bool, last: bool) -> tuple[Starts, int]:
        begin = len(BOM) if first and block.startswith(BOM) else 0
        if b"\0" in block:
            raise IrregularError
        ends = self._ends(block, begin, last=last)
        if ends is None:
            ends = self._parsed_ends(block, begin, last=last)
        if not len(ends):
            return NONE, 0
        starts = np.concatenate(([begin], ends[:-1])).astype(np.int64)
        starts = starts[_are_filled(block, starts, ends)]
        if first and not last and not len(starts):
            raise IrregularError
        return starts[1:] if first else starts, int(ends[-1])

    def _ends(self, block: bytes, begin: int, *, last: bool) -> npt.NDArray[np.int64] | None:
        """The ends of complete records; None if quotes or line ends lie where counting them is not enough."""
        # The line feed after a final return may be in the next block.
        returns = block.count(b"\r") - (not last and block.endswith(b"\r"))
        if returns and returns != block.count(b"\r\n"):
            return None
        data = np.frombuffer(block, np.uint8)
        lines = np.flatnonzero(data == _LINE)
        if self.dialect.quoted and b'"' in block:
            quotes = np.flatnonzero(data == _QUOTE)
            opening = quotes[::2]
            before = data[np.maximum(opening - 1, 0)]
            # Each first quote of a pair begins a cell, or is the second of two that stand for one.
            begins = (opening == begin) | np.isin(before, [ord(self.dialect.delimiter), _LINE, _RETURN, _QUOTE])
            if not begins.all():
                return None
            lines = lines[np.searchsorted(quotes, lines) % 2 == 0]
        ends = lines + 1
        if last and (not len(ends) or ends[-1] < len(block)) and len(block) > begin:
            ends = np.append(ends, len(block))
        return ends[ends > begin]

    def _parsed_ends(self, block: bytes, begin: int, *, last: bool) -> npt.NDArray[np.int64]:
        """The ends of complete records, found by parsing them."""
        place = begin
        ends: list[int] = []

        def lines() -> Iterator[str]:
            nonlocal place
            # Only single bytes below 128 divide cells, and Latin-1 has a character for each byte.
            for line in io.StringIO(block[begin:].decode("latin-1"), newline=""):
                place += len(line)
                yield line

        try:
            ends.extend(place for _ in self.dialect.reader(lines()))
        except csv.Error as error:
            raise IrregularError from error
        # The last record may go on after the block.
        return np.array(ends if last else ends[:-1], np.int64)


def _are_filled(block: bytes, starts: Starts, ends: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which records are more than a line end."""
    lengths = ends - starts
    filled = lengths > 2
    for place in np.flatnonzero(~filled).tolist():
        filled[place] = bool(block[starts[place] : ends[place]].strip(b"\r\n"))
    return np.asarray(filled, np.bool_)
