"""Which tokenised sets of this machine hold documents, by the hashes of their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from shardyard.data.tokenized.layout import ROW, mapped, read_manifest
from shardyard.errors import DataError
from shardyard.recipe.sources.token_sets import tokenized_root
from shardyard.recipe.sources.tokens import MANIFEST

# Digits of a hash that a row keeps.
_KEPT_DIGITS = 16


def sets_holding(hashes: Iterable[str]) -> Iterator[tuple[Path, int]]:
    """The folders of sets that hold documents with these SHA-256, and how many of their rows; unreadable sets are left
    out, because nothing reads them."""
    wanted = np.array([int(digest[:_KEPT_DIGITS], 16) for digest in hashes], np.uint64)
    if not len(wanted):
        return
    for path in sorted(tokenized_root().glob(f"*/{MANIFEST}")):
        folder = path.parent
        try:
            shards = read_manifest(folder).shards
            number = sum(
                int(np.isin(mapped(folder / f"{shard.name}.rows", ROW)["content"], wanted).sum()) for shard in shards
            )
        except DataError:
            continue
        if number:
            yield folder, number
