"""Repetition within a document, as Gopher limits it (Rae et al. 2021, arXiv:2112.11446, table A1).

The paper leaves open what a duplicate is; here and in FineWeb it is a line, paragraph or n-gram that occurred before in
the document, so the first one does not count. Shares of n-grams are of the characters of the words and the single
spaces between them; a character within several n-grams counts once, as the paper says. The most frequent n-gram counts
if it occurs twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.data.filters.parts import covered, lines_of, paragraphs_of, repeats, words_of
from shardyard.recipe.sections.filters import GopherRepetition

_TOP = (2, 3, 4)
_DUPLICATE = (5, 6, 7, 8, 9, 10)


def gopher_repetition(step: GopherRepetition) -> Clean:
    """Remove documents that repeat themselves."""
    limits = step.model_dump()

    def clean(text: str) -> str | Removed:
        for name, share in shares(text):
            limit = limits[name]
            if limit is not None and share > limit:
                return Removed(f"{name.removeprefix('max_').replace('_', ' ')} above {limit:g}")
        return text

    return clean


def shares(text: str) -> Iterator[tuple[str, float]]:
    """Each field of `GopherRepetition` with the document's share; costly ones last."""
    for name, parts in (("line", lines_of(text)), ("paragraph", paragraphs_of(text))):
        number, characters = repeats(parts)
        yield f"max_duplicate_{name}s", number / max(1, len(parts))
        yield f"max_duplicate_{name}_characters", characters / max(1, sum(map(len, parts)))
    words = words_of(text)
    whole = max(1, sum(map(len, words)) + len(words) - 1)
    for size in _TOP:
        yield f"max_top_{size}gram", _top(words, size) / whole
    for size in _DUPLICATE:
        yield f"max_duplicate_{size}grams", covered(words, _repeated(words, size), size) / whole


def _top(words: Sequence[str], size: int) -> int:
    """Characters in the n-gram that occurs most often, of several the one that covers most; 0 if none occurs twice."""
    starts: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(words) - size + 1):
        starts.setdefault(tuple(words[start : start + size]), []).append(start)
    most = max(map(len, starts.values()), default=0)
    if most < 2:
        return 0
    return max(covered(words, found, size) for found in starts.values() if len(found) == most)


def _repeated(words: Sequence[str], size: int) -> Iterator[int]:
    """Where an n-gram begins that has occurred before."""
    seen = set[tuple[str, ...]]()
    for start in range(len(words) - size + 1):
        ngram = tuple(words[start : start + size])
        if ngram in seen:
            yield start
        seen.add(ngram)
