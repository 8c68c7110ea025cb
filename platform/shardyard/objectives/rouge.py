"""ROUGE of generated texts against references (Lin 2004), with the tokens of the package rouge-score.

Tokens are runs of the letters a to z and of digits, in lower case, so other scripts have none. Scores are F-measures
from 0 to 1, as means over texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module

from shardyard.errors import DataError
from shardyard.extras import install_command, missing

_TOKEN = re.compile(r"[a-z0-9]+")
# Shorter words keep their endings.
_SHORTEST_STEMMED = 4
Stem = Callable[[str], str]


def rouge(hypotheses: Sequence[str], references: Sequence[str], *, stemmed: bool = False) -> dict[str, float]:
    """`rouge1` and `rouge2`, of single words and of pairs, and `rouge_l`, of the longest common subsequence.

    Args:
        stemmed: take endings off English words first, by Porter's rules.

    Raises:
        DataError: nothing to score, different numbers of texts, or nltk is missing, which has the rules.
    """
    if len(hypotheses) != len(references) or not references:
        raise DataError(
            f"rouge: {len(hypotheses)} hypotheses and {len(references)} references; give the same number of both, at "
            "least one."
        )
    stem = _porter() if stemmed else None
    pairs = [(_tokens(h, stem), _tokens(r, stem)) for h, r in zip(hypotheses, references, strict=True)]
    scores = {
        "rouge1": [_overlap(h, r, 1) for h, r in pairs],
        "rouge2": [_overlap(h, r, 2) for h, r in pairs],
        "rouge_l": [_f(_common(h, r), len(h), len(r)) for h, r in pairs],
    }
    return {name: sum(values) / len(values) for name, values in scores.items()}


def first_words(text: str, like: str) -> str:
    """The first words of a text, as many as another has: what a summary must exceed."""
    return " ".join(text.split()[: len(like.split())])


def _tokens(text: str, stem: Stem | None) -> list[str]:
    found = _TOKEN.findall(text.lower())
    return found if stem is None else [stem(word) if len(word) >= _SHORTEST_STEMMED else word for word in found]


def _overlap(hypothesis: list[str], reference: list[str], length: int) -> float:
    """F-measure of n-grams; each counts as often as it occurs on both sides."""
    a, b = (Counter(zip(*(words[at:] for at in range(length)), strict=False)) for words in (hypothesis, reference))
    return _f((a & b).total(), a.total(), b.total())


def _common(first: list[str], second: list[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, start=1):
            above = row[at]
            row[at] = before + 1 if word == other else max(above, row[at - 1])
            before = above
    return row[-1]


def _f(common: int, first: int, second: int) -> float:
    return 2 * common / (first + second) if common else 0.0


def _porter() -> Stem:
    if missing("nltk"):
        raise DataError(f"evaluate.rouge: stemmed takes Porter's rules from nltk: `{install_command('eval')}`.")
    stem: Stem = import_module("nltk.stem.porter").PorterStemmer().stem
    return stem
