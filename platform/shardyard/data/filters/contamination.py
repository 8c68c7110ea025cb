"""Documents that share n-grams with evaluation sets, as GPT-3 looked for them (Brown et al. 2020, appendix C)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from shardyard.data.filters.outcome import Clean, Removed
from shardyard.errors import DataError
from shardyard.recipe.sections.filters import Decontaminate

_WORD = re.compile(r"\w+")


def compared_words(text: str) -> list[str]:
    """Words as they are compared: in lower case and without punctuation."""
    return _WORD.findall(text.lower())


@dataclass
class Index:
    """Hashes of n-grams of evaluation texts by their length in words; `num_texts` of all, `num_short` of ignored ones.

    With hashes of 64 bits, 10⁹ n-grams of documents and 10⁸ of evaluation sets, 0.005 are expected to be found wrongly.
    """

    ngrams: dict[int, set[int]] = field(default_factory=dict)
    num_texts: int = 0
    num_short: int = 0

    def add(self, step: Decontaminate, text: str) -> None:
        """Add the n-grams of an evaluation text, or all of a short one."""
        words = compared_words(text)
        size = min(step.ngram, len(words))
        self.num_texts += 1
        if size < min(step.min_ngram, step.ngram):
            self.num_short += 1
            return
        self.ngrams.setdefault(size, set()).update(_hashes(words, size))


def index_of(step: Decontaminate, texts: Iterable[str]) -> Index:
    """The index of evaluation texts.

    Raises:
        DataError: there is nothing to look for.
    """
    index = Index()
    for text in texts:
        index.add(step, text)
    if not index.ngrams:
        raise DataError(
            f"decontaminate has nothing to look for: of {index.num_texts} evaluation texts none has min_ngram "
            f"{step.min_ngram} words. Check `text_columns` and `split` under `against`, or lower min_ngram."
        )
    return index


def decontaminate(step: Decontaminate, index: Index) -> Clean:
    """Remove documents of which a larger share of the n-grams than `max_overlap` is in the index."""
    removed = Removed(
        f"shares {step.ngram}-grams with an evaluation set"
        if step.max_overlap == 0.0
        else f"shares more than {step.max_overlap:g} of its {step.ngram}-grams with an evaluation set"
    )
    return lambda text: removed if overlap(text, step.ngram, index) > step.max_overlap else text


def overlap(text: str, size: int, index: Index) -> float:
    """The share of a document's n-grams that begin with one of the index, which may be shorter.

    A document shorter than an n-gram is one itself.
    """
    words = compared_words(text)
    number = max(1, len(words) - size + 1)
    begins = {start for length, known in index.ngrams.items() for start in _found(words, length, known)}
    # What begins after the last whole n-gram lies within it.
    return len({min(start, number - 1) for start in begins}) / number


def _found(words: Sequence[str], size: int, known: set[int]) -> Iterator[int]:
    return (start for start, value in enumerate(_hashes(words, size)) if value in known)


def _hashes(words: Sequence[str], size: int) -> Iterator[int]:
    for start in range(len(words) - size + 1):
        ngram = " ".join(words[start : start + size]).encode()
        yield int.from_bytes(hashlib.blake2b(ngram, digest_size=8).digest(), "big")
