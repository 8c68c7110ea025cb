"""Hashes of documents that are compared with each other: of whole texts, and MinHash bands of their n-grams."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.data.filters.contamination import compared_words
from shardyard.extras import require
from shardyard.recipe.sections.filters import ExactDuplicates, NearDuplicates, Step

Hashes = npt.NDArray[np.uint64]
# The hashes of one document; equal ones of one column make two documents alike.
HashText = Callable[[str], Hashes]


def hasher(step: Step) -> tuple[int, HashText]:
    """The number of hashes of a document, and the function that makes them.

    Raises:
        UsageError: a library is not installed.
    """
    if step.exact_duplicates is not None:
        exact = step.exact_duplicates
        return 1, lambda text: exact_hash(exact, text)
    assert step.near_duplicates is not None, "other steps look at single documents"
    return step.near_duplicates.bands, near_hashes(step.near_duplicates)


def exact_hash(step: ExactDuplicates, text: str) -> Hashes:
    """One hash of a text, [1]. With 64 bits, of 10⁹ documents 0.03 are expected to be like another by chance."""
    if step.compare == "normalized":
        text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), np.uint64)


def near_hashes(step: NearDuplicates) -> HashText:
    """A function that makes a hash of each band, [bands]: the smallest hashes of a document's n-grams (MinHash)."""
    require("clean", "the step near_duplicates", "rensa")
    from rensa import RMinHash

    bands, rows = step.bands, step.rows

    def make(text: str) -> Hashes:
        words = compared_words(text)
        size = min(step.ngram, len(words))
        if not size:
            # Documents without words are alike only if they are equal.
            words, size = [text], 1
        sketch: Any = RMinHash(num_perm=bands * rows, seed=step.seed)
        sketch.update([" ".join(words[start : start + size]) for start in range(len(words) - size + 1)])
        lowest = np.array(sketch.digest(), np.uint32).reshape(bands, rows)
        digests = b"".join(hashlib.blake2b(band.tobytes(), digest_size=8).digest() for band in lowest)
        return np.frombuffer(digests, np.uint64)

    return make
