"""The rules of C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2): on lines, then on what is left of the document.

Its list of bad words is not here (a `regex` step does the same), nor its removal of repeated spans of three sentences.
"""

from __future__ import annotations

import re

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.data.filters.parts import num_sentences
from shardyard.recipe.sections.filters import C4

_ENDS = (".", "!", "?", '"', "'", "”", "’", "»")
_CITATIONS = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def c4(step: C4) -> Clean:
    """Remove lines, then documents."""
    few = Removed(f"fewer than {step.min_sentences} sentences in the lines that are left")
    empty, lorem, bracket = Removed("no line is left"), Removed("lorem ipsum"), Removed("a curly bracket")

    def clean(text: str) -> str | Removed:
        if step.lorem_ipsum and "lorem ipsum" in text.lower():
            return lorem
        if step.curly_brackets and "{" in text:
            return bracket
        if step.citations:
            text = _CITATIONS.sub("", text)
        kept = [line for line in map(str.strip, text.split("\n")) if _keeps(step, line)]
        if not kept:
            return empty
        if step.min_sentences is not None and sum(map(num_sentences, kept)) < step.min_sentences:
            return few
        return "\n".join(kept)

    return clean


def _keeps(step: C4, line: str) -> bool:
    """Whether a line stays. A line that ends with an ellipsis is cut off and ends with no punctuation."""
    words, lower = line.split(), line.lower()
    return not (
        (step.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith("...")))
        or (step.min_words_per_line is not None and len(words) < step.min_words_per_line)
        or (step.max_word_length is not None and any(len(word) > step.max_word_length for word in words))
        or (step.javascript and "javascript" in lower)
        or (step.policies and any(phrase in lower for phrase in _POLICIES))
    )
