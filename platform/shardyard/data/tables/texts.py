"""Text files as documents: whole, or divided at lines, blank lines, a length or a pattern."""

from __future__ import annotations

import codecs
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import datasets
import pyarrow as pa

from shardyard.data.tables.opened import CHUNK_BYTES, opened
from shardyard.data.tables.table import table_of
from shardyard.recipe.sources.files import compression

TABLE_ROWS = 1000
# A file is divided part by part, so that one without any bound is not read whole before its first document.
PART_BYTES = CHUNK_BYTES
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
# Where a text is cut to a length: after the last of these that lies in the second half, most wanted first.
_CUTS = ("\n\n", "\n", ". ", " ")


# A single file is divided into so many pieces, if these are then no shorter and no longer than this, in characters.
_PIECES, _SHORTEST, _LONGEST = 256, 200, 2000


def documents_of(given: str | int | None, files: Sequence[str]) -> str | int:
    """How text files become documents: as the recipe says, else several are one document each.

    A single one is divided into pieces of about so many characters: a document can neither be dealt to streams nor be
    held out in part. Its length is that of the file in bytes where it is known.
    """
    if given is not None:
        return given
    if len(files) > 1:
        return "file"
    known = os.path.isfile(files[0]) and compression(files[0]) is None
    return min(max(os.path.getsize(files[0]) // _PIECES, _SHORTEST), _LONGEST) if known else _LONGEST


@dataclass(frozen=True)
class TextTables:
    """The documents of text files, in the column `text`.

    documents: `file`, one document per file; `lines`; `paragraphs`, at blank lines; the number of characters of a
    document, which ends with a paragraph, a line, a sentence or a word; or `/…/`, a regular expression that matches at
    the beginning of each document.
    """

    documents: str | int = "file"

    @property
    def features(self) -> datasets.Features:
        """The only column."""
        return datasets.Features({"text": datasets.Value("string")})

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The tables of a file."""
        with opened(path) as file:
            parts = _decoded(file)
            found = iter(["".join(parts)]) if self.documents == "file" else _cut(parts, self._cutter())
            whole = self.documents == "file"
            numbered = enumerate((text for text in found if whole or text.strip()), 1)
            while some := list(itertools.islice(numbered, TABLE_ROWS)):
                yield self._table(some)

    def of_records(self, records: Sequence[bytes], _: str) -> pa.Table:
        """The table of some documents of a file."""
        texts = [lines_ended(record.decode(errors="surrogateescape")) for record in records]
        return self._table(list(enumerate(texts)))

    def pieces(self, text: str) -> tuple[list[str], list[int]]:
        """The documents of a text, blank ones too, and the characters at which they begin."""
        pieces = self._cutter()(text, True)
        if self.documents == "paragraphs":
            return pieces, [0, *(match.end() for match in _BLANK_LINES.finditer(text))]
        gap = 1 if self.documents == "lines" else 0
        return pieces, [0, *itertools.accumulate(len(piece) + gap for piece in pieces[:-1])]

    def _cutter(self) -> Callable[[str, bool], list[str]]:
        if isinstance(self.documents, int):
            length = self.documents
            return lambda text, _: _of_length(text, length)
        if self.documents == "lines":
            return lambda text, _: text.split("\n")
        if self.documents == "paragraphs":
            return lambda text, _: _BLANK_LINES.split(text)
        pattern = re.compile(self.documents.removeprefix("/").removesuffix("/"), re.MULTILINE)
        return lambda text, _: _at(text, pattern)

    def _table(self, texts: list[tuple[int, str]]) -> pa.Table:
        stored, problems = [], list[str | None]()
        for _, text in texts:
            fine = _is_utf8(text)
            stored.append(text if fine else _repaired(text))
            problems.append(None if fine else "no UTF-8")
        return table_of(self.features, {"text": stored}, problems)


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """The text in parts, with line breaks as `\\n`. Bytes that are no UTF-8 survive as lone surrogates."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    rest = ""
    for data in iter(lambda: file.read(PART_BYTES), b""):
        text = rest + decoder.decode(data)
        rest = "\r" if text.endswith("\r") else ""
        yield lines_ended(text.removesuffix("\r") if rest else text)
    yield lines_ended(rest + decoder.decode(b"", final=True))


def lines_ended(text: str) -> str:
    """The text with line breaks as `\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _cut(parts: Iterator[str], cut: Callable[[str, bool], list[str]]) -> Iterator[str]:
    """The documents of a text that comes in parts: the last one of a part may go on in the next."""
    rest = ""
    for part in parts:
        *whole, rest = cut(rest + part, False)
        yield from whole
    yield from cut(rest, True) if rest else ()


def _of_length(text: str, length: int) -> list[str]:
    found, start = [], 0
    while len(text) - start > length:
        end = start + length
        for mark in _CUTS:
            place = text.rfind(mark, start + length // 2, end)
            if place >= 0:
                end = place + len(mark)
                break
        found.append(text[start:end])
        start = end
    return [*found, text[start:]]


def _at(text: str, pattern: re.Pattern[str]) -> list[str]:
    starts = [match.start() for match in pattern.finditer(text)]
    bounds = [0, *(start for start in starts if start), len(text)]
    return [text[first:last] for first, last in itertools.pairwise(bounds)]


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)


def _repaired(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")
