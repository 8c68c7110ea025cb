"""Texts of SWORD modules (driver zText, block type BOOK): verses by reference, without markup."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import Path

_CHAPTER = re.compile(r'<chapter\b[^>]*\bosisID="([^"]+)"')
_BOOK = re.compile(r'<div\b[^>]*\btype="book"')
# Elements that are not part of the verse: notes, speakers, headings except psalm titles.
_ASIDES = re.compile(
    r'<(note|speaker|title(?![^>]*canonical="true"))\b[^>]*(?<!/)>.*?</(?:note|speaker|title)>', re.DOTALL
)
_BREAKS = re.compile(r"</?(div|l|lg|lb|item|list|chapter|title)\b[^>]*>")
_TAGS = re.compile(r"<[^>]*>")
_SPACE_BEFORE = re.compile(r" +([,.;:!?”’)»])")


def read_verses(folder: Path) -> dict[str, str]:
    """Plain text of every verse that is not empty, by references such as `Gen.1:1`, in the module's order.

    The index of a module lists, for each chapter, an entry that names it and then its verses: the references come from
    these entries, whatever the versification.
    """
    verses = {}
    for testament in ("ot", "nt"):
        chapter, number = None, 0
        for entry in _entries(folder, testament):
            named = _CHAPTER.findall(entry)
            if named or _BOOK.search(entry):
                chapter, number = (named[-1] if named else None), 0
            elif chapter is not None:
                number += 1
                text = plain(entry)
                if text:
                    verses[f"{chapter}:{number}"] = text
    return verses


def plain(markup: str) -> str:
    """The text of an OSIS verse: notes become spaces, tags are removed, white space is collapsed."""
    text = _TAGS.sub("", _BREAKS.sub(" ", _ASIDES.sub(" ", markup)))
    return _SPACE_BEFORE.sub(r"\1", " ".join(unescape(text).split()))


def _entries(folder: Path, testament: str) -> Iterator[str]:
    """The entries of a testament: `.bzz` has compressed books, `.bzs` their positions, `.bzv` the entries of each."""
    packed = (folder / f"{testament}.bzz").read_bytes()
    blocks = [
        zlib.decompress(packed[start : start + size])
        for start, size, _ in struct.iter_unpack("<III", (folder / f"{testament}.bzs").read_bytes())
    ]
    for block, start, size in struct.iter_unpack("<IIH", (folder / f"{testament}.bzv").read_bytes()):
        yield blocks[block][start : start + size].decode("utf-8") if size else ""
