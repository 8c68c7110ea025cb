"""Verses with different numbering: pairs with the same reference that are not translations of each other."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

_MAX_SHIFT = 3
_WINDOW = 2
# Small enough to find every chapter with different numbering; by chance, about 1% of verses exceed it.
_MARGIN = 0.1
_LONG_WORD = re.compile(r"\w{4,}")


def moved(source: Mapping[str, str], target: Mapping[str, str]) -> set[str]:
    """References (`Num.13:5`) where the target's verse matches another verse of the chapter better.

    A verse and its two neighbours on each side are compared with those up to three verses away. The score of a pair
    depends on words with the same beginning, mostly names, and on the difference of lengths.
    """
    starts = [{reference: _beginnings(text) for reference, text in side.items()} for side in (source, target)]

    def score(one: str, other: str) -> float | None:
        if one not in source or other not in target:
            return None
        ratio = math.log((len(source[one]) + 10) / (len(target[other]) + 10))
        return len(starts[0][one] & starts[1][other]) - 2 * abs(ratio)

    def fit(chapter: str, verse: int, shift: int) -> float:
        near = range(verse - _WINDOW, verse + _WINDOW + 1)
        scores = [score(f"{chapter}:{index}", f"{chapter}:{index + shift}") for index in near]
        found = [value for value in scores if value is not None]
        return sum(found) / len(found) if len(found) > _WINDOW else -math.inf

    shifts = [shift for shift in range(-_MAX_SHIFT, _MAX_SHIFT + 1) if shift]
    references = ((reference, *reference.split(":")) for reference in source if reference in target)
    return {
        reference
        for reference, chapter, verse in references
        if max(fit(chapter, int(verse), shift) for shift in shifts) > fit(chapter, int(verse), 0) + _MARGIN
    }


def _beginnings(text: str) -> set[str]:
    """The first four letters, without accents, of words with at least four letters."""
    letters = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return {word[:4] for word in _LONG_WORD.findall(letters)}
