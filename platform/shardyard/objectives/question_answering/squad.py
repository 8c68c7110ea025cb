"""Exact match and F1 of answers as SQuAD defines them (Rajpurkar et al. 2016, section 5; 2018 for no answer)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """An answer without case, punctuation, articles and repeated spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference once both are normalised. Without references, only an empty answer does."""
    return float(normalised(answer) in _references(references))


def f1(answer: str, references: Sequence[str]) -> float:
    """The largest F1 of words between the answer and a reference."""
    return max(_f1(normalised(answer).split(), reference.split()) for reference in _references(references))


def _references(texts: Sequence[str]) -> list[str]:
    """The normalised references; an empty one stands for no answer."""
    return [found for text in texts if (found := normalised(text))] or [""]


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))
