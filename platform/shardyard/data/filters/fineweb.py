"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6); a share that equals its bound is removed."""

from __future__ import annotations

import unicodedata

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.data.filters.parts import lines_of, repeats, words_of
from shardyard.recipe.sections.filters import FineWeb

# Beside these, a line ends with punctuation if its last character is other punctuation that ends sentences.
_ENDS = frozenset(".!?。！？…؟۔।॥")


def fineweb(step: FineWeb) -> Clean:
    """Remove documents that are lists, repeat lines, or have no sentences."""
    unpunctuated = Removed(f"at most {step.min_punctuated_lines} of the lines end with punctuation")
    repeated = Removed(f"at least {step.max_duplicate_line_characters} of the characters in repeated lines")
    short = Removed(f"at least {step.max_short_lines} of the lines shorter than {step.short_line} characters")
    listed = Removed(f"more than {step.max_newlines_per_word} line ends a word")

    def clean(text: str) -> str | Removed:
        lines = lines_of(text)
        number = max(1, len(lines))
        ended = sum(_is_ended(line) for line in lines) / number
        if step.min_punctuated_lines is not None and ended <= step.min_punctuated_lines:
            return unpunctuated
        duplicate = repeats(lines)[1] / max(1, sum(map(len, lines)))
        if step.max_duplicate_line_characters is not None and duplicate >= step.max_duplicate_line_characters:
            return repeated
        few = sum(len(line) < step.short_line for line in lines) / number
        if step.max_short_lines is not None and few >= step.max_short_lines:
            return short
        newlines = text.count("\n") / max(1, len(words_of(text)))
        if step.max_newlines_per_word is not None and newlines > step.max_newlines_per_word:
            return listed
        return text

    return clean


def _is_ended(line: str) -> bool:
    last = line[-1]
    return last in _ENDS or (ord(last) > 127 and "FULL STOP" in unicodedata.name(last, ""))
