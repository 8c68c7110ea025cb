"""Where the documents of a text file begin and end, in bytes."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shardyard.data.index.records import NONE, Starts
from shardyard.data.tables import texts
from shardyard.data.tables.texts import TextTables

_LINE, _RETURN = b"\n\r"


class Documents:
    """The documents of a text file as `TextTables` divides it, which it does part by part; blank ones are none."""

    has_ends = True

    def __init__(self, tables: TextTables) -> None:
        self._tables = tables

    @property
    def name(self) -> str:
        return f"texts-1 {self._tables.documents}"

    @property
    def part_bytes(self) -> int:
        """The parts are those of streaming, so that both find the same documents."""
        return texts.PART_BYTES

    def find(self, block: bytes, *, first: bool, last: bool) -> tuple[Starts, int]:
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        text = decoder.decode(block, final=last)
        if not last and text.endswith("\r"):
            text = text[:-1]
        pieces, begins = self._tables.pieces(texts.lines_ended(text))
        bounds = [(begin, begin + len(piece)) for piece, begin in zip(pieces, begins, strict=True)]
        spans = [bound for piece, bound in zip(pieces, bounds, strict=True) if piece.strip()]
        if not last:
            # The last document may go on.
            spans = [span for span in spans if span != bounds[-1]]
        places = [place for span in spans for place in span]
        whole = texts.lines_ended(text)
        found = _bytes(whole, [*places, len(whole) if last else begins[-1]])
        if "\r" in text:
            found = _with_returns(block, found)
        length = len(block) if last else int(found[-1])
        return found[:-1] if length else NONE, length


def _bytes(text: str, places: Sequence[int]) -> npt.NDArray[np.int64]:
    """The number of bytes before each of some ascending characters."""
    if text.isascii():
        return np.array(places, np.int64)
    between = itertools.pairwise([0, *places])
    lengths = [len(text[begin:end].encode(errors="surrogateescape")) for begin, end in between]
    return np.cumsum(np.array(lengths, np.int64), dtype=np.int64)


def _with_returns(block: bytes, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places in a block from those in the text without the returns of its `\\r\\n`."""
    data = np.frombuffer(block, np.uint8)
    returns = np.flatnonzero((data[:-1] == _RETURN) & (data[1:] == _LINE))
    return places + np.searchsorted(returns - np.arange(len(returns)), places, side="left")
