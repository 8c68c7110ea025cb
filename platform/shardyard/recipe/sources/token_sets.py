"""Where sets of tokenised data lie, and which sources name files of token ids. Pure."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from shardyard.errors import DataError
from shardyard.recipe.schema import Source
from shardyard.recipe.sources.files import file_kind
from shardyard.recipe.sources.recognise import Recognised, recognise
from shardyard.recipe.sources.tokens import MANIFEST

_HEAD_BYTES = 4096


def tokenized_root() -> Path:
    """The folder of tokenised sets: `tokenized` in SHARDYARD_CACHE, else in ~/.cache/shardyard."""
    cache = os.environ.get("SHARDYARD_CACHE")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache" / "shardyard") / "tokenized"


def any_sets() -> bool:
    """Whether there is any finished set, so that most runs need not know what their address would be."""
    return next(manifests(), None) is not None


def any_sets_of(tokenizer: str, sources: Collection[Source]) -> bool:
    """Whether there is any finished set of a tokenizer with this name that may be one of these sources, told by the
    first bytes of the manifests: a set of an embedded corpus is none of files, nor of another corpus."""
    named, corpora = json.dumps(tokenizer).encode(), {source.source for source in sources}
    for path in manifests():
        with contextlib.suppress(OSError), path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            corpus = re.search(rb'"corpus": "([^"]*)"', head)
            if re.search(rb'"tokenizer": ' + re.escape(named), head) and (
                corpus is None or corpus[1].decode(errors="replace") in corpora
            ):
                return True
    return False


def manifests() -> Iterator[Path]:
    """The manifests of all finished sets in the cache folder."""
    with contextlib.suppress(OSError):
        yield from tokenized_root().glob(f"*/{MANIFEST}")


def recognised_tokens(source: Source, *, training: bool) -> Recognised | None:
    """The files of token ids that a source names; None if it names something else.

    Raises:
        DataError: there are files that cannot be read, or no such split.
    """
    if source.path is None or "://" in source.path:
        return None
    path = os.path.expanduser(source.path)
    kind = file_kind(source.path)
    if kind not in (None, "tokens") and not os.path.isdir(path):
        return None
    try:
        found = recognise(source.path, source.split or ("train" if training or source.holdout else "validation"))
    except DataError:
        return None  # Opening it says the same.
    return found if found is not None and found.kind == "tokens" else None
