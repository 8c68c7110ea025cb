"""The validation split, by hashes of keys that must not occur on both sides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+")


def is_held_out(key: str, percent: float) -> bool:
    """Whether a key belongs to validation, which has about `percent` of all keys; depends only on the key."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return number < percent / 100 * 2.0**64


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(text.casefold())


def near_duplicates(texts: Sequence[str], *, run: int = 5) -> list[str]:
    """A key per text, equal for texts that share `run` words in a row or all their words; transitive.

    The key is the alphabetically first text of the group, as words: it does not depend on the order of the texts.
    """
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    listed = [words(text) for text in texts]
    first: dict[tuple[str, ...], int] = {}
    for index, own in enumerate(listed):
        for start in range(max(1, len(own) - run + 1)):
            other = first.setdefault(tuple(own[start : start + run]), index)
            parent[root(index)] = root(other)
    keys: dict[int, str] = {}
    for index, own in enumerate(listed):
        key = " ".join(own)
        keys[root(index)] = min(key, keys.get(root(index), key))
    return [keys[root(index)] for index in range(len(texts))]
