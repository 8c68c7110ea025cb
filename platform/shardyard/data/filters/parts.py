"""Words, lines, paragraphs and sentences of a document, and how much of it some of its words cover."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_BLANK_LINES = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]")


def words_of(text: str) -> list[str]:
    """What stands between spaces, with its punctuation. Languages written without spaces have no words here."""
    return text.split()


def lines_of(text: str) -> list[str]:
    """Lines that are not blank, without spaces around them."""
    return [line for line in map(str.strip, text.split("\n")) if line]


def paragraphs_of(text: str) -> list[str]:
    """What stands between blank lines."""
    return [part for part in map(str.strip, _BLANK_LINES.split(text)) if part]


def num_sentences(text: str) -> int:
    """Sentences: each ends with a full stop, an exclamation or a question mark before a space or the end."""
    return len(_SENTENCE_END.findall(text))


def repeats(parts: Iterable[str]) -> tuple[int, int]:
    """The number of the parts that repeat an earlier one, and of their characters."""
    seen = set[str]()
    number = characters = 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        seen.add(part)
    return number, characters


def covered(words: Sequence[str], starts: Iterable[int], size: int) -> int:
    """Characters of runs of `size` words with the spaces between them; where runs overlap, each character once.

    Args:
        starts: where the runs begin, ascending.
    """
    characters, end = 0, 0
    for start in starts:
        new = range(max(start, end), start + size)
        # A run that continues the one before brings the space between them.
        characters += sum(len(words[index]) + 1 for index in new) - (0 if start < end else 1)
        end = start + size
    return characters
