"""What identifies tokenised data: the state of its source, the tokenizer and the options; and where sets lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec  # type: ignore[import-untyped]

from shardyard.data.quirks import shard_files
from shardyard.data.sources.sources import OpenSource
from shardyard.data.tables.texts import documents_of
from shardyard.data.tokenized.layout import VERSION
from shardyard.recipe.schema import Source

# Of the way in which rows become tokens; another one makes sets that were written before invisible.
READING = 1
_NAMED_CHARACTERS = 24
_SHOWN_HASH = 16


@dataclass(frozen=True)
class Address:
    """`source` and `options` are what the digest is made of, beside the tokenizer."""

    digest: str
    name: str
    source: Mapping[str, object]
    options: Mapping[str, object]
    tokenizer_sha256: str

    @property
    def folder_name(self) -> str:
        """The name of its folder: readable, and different for every address."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")[-_NAMED_CHARACTERS:].strip("-")
        return f"{readable or 'data'}-{self.digest[:_SHOWN_HASH]}"


def address_of(opened: OpenSource, source: Source, tokenizer_sha256: str) -> Address:
    """The address of an opened, streamed source.

    Local files count by their paths, sizes and times of change, a set of the hub by its revision, a remote file by what
    its server says of it, and a prepared set by its content. The hold-out is no part of it: every row keeps the number
    by which it is held out.
    """
    state = _state(opened, source)
    options: dict[str, object] = {
        "column": opened.columns["text"],
        "documents": _documents(opened, source),
        "filters": opened.fingerprint.get("filters"),
        "reading": READING,
    }
    values = [VERSION, state, options, tokenizer_sha256]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    return Address(digest, opened.name, state, options, tokenizer_sha256)


def _state(opened: OpenSource, source: Source) -> dict[str, object]:
    state = {key: value for key, value in opened.fingerprint.items() if key not in ("source", "excluded", "filters")}
    if source.source is not None or "hub" in state:
        return {**state, "name": opened.name}
    files = [file.path for file in shard_files(opened.dataset)]
    if "://" in str(source.path):
        return {"url": source.path, "files": [_remote_state(file) for file in files]}
    states = [_file_state(file) for file in files]
    digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return {"split": state.get("split"), "num_files": len(files), "num_bytes": state.get("num_bytes"), "sha256": digest}


def _file_state(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _remote_state(url: str) -> dict[str, str]:
    """What a server says of a file; nothing if it cannot be asked, and then the URL alone counts."""
    with contextlib.suppress(Exception):
        found: Any = fsspec.core.url_to_fs(url)
        about = found[0].info(found[1])
        # The address itself may contain a login.
        return {key: str(about[key]) for key in ("size", "ETag", "etag", "LastModified", "mtime") if key in about}
    return {}


def _documents(opened: OpenSource, source: Source) -> object:
    files = [file.path for file in shard_files(opened.dataset)]
    is_text = source.path is not None and opened.found is not None and "text file" in opened.found.about
    return documents_of(source.documents, files) if is_text else source.documents
