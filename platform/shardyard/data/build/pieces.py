"""Pieces of the sources, each the work of one task, and their documents. Pieces depend on the data alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from shardyard.data.build.spec import BuildSource, BuildSpec
from shardyard.data.index.records import IrregularError
from shardyard.data.index.rows import indexed_files
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import TEXT_ONLY, OpenSource, open_source
from shardyard.data.sources.values import Decode
from shardyard.data.stream.reader import ShareReader
from shardyard.data.stream.share import START, Cursor, Share

# About so much of a local file is one piece; a source of many files has at least `LEAST_PIECES` if it has as many.
PIECE_BYTES = 64 << 20
LEAST_PIECES = 64
ROWS_READ = 256
# A document's key is its piece's first key plus its row: file order is the order of keys.
ROW_BITS = 40


@dataclass(frozen=True)
class Piece:
    """Consecutive documents of a source: rows `first` to before `last` of part `part` of `parts` of its shards.

    `last` is None at the end. `number` counts the parts of all sources.
    """

    source: int
    part: int
    parts: int
    number: int
    first: int = 0
    last: int | None = None

    def key(self, row: int) -> int:
        """The key of a row of the part."""
        return (self.number << ROW_BITS) + row


@dataclass(frozen=True)
class Found:
    """A document with its key, and the values of kept columns."""

    key: int
    text: str
    kept: dict[str, str | None]


@functools.lru_cache(maxsize=16)
def opened(description: str) -> OpenSource:
    """A source from its JSON, with its text and the columns that are kept. Raises as `open_source` does."""
    source = BuildSource.model_validate_json(description)
    kept = dict.fromkeys(source.keep_columns, "text")
    found = open_source(source.as_recipe_source(), training=True, roles=cast(Any, {**TEXT_ONLY, **kept}))
    # Only a document without text is incomplete.
    return replace(found, kinds=TEXT_ONLY, decoders={**dict.fromkeys(kept, _as_text), **_own(found)})


def _own(found: OpenSource) -> dict[str, Decode]:
    return {"text": found.decoders["text"]} if "text" in found.decoders else {}


def _as_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def pieces_of(spec: BuildSpec, *, whole: bool = True) -> list[Piece]:
    """The pieces of all sources, in order.

    Args:
        whole: False for one piece of each source, as a sample needs it.

    Raises:
        DataError: a source cannot be opened.
    """
    pieces: list[Piece] = []
    number = 0
    for index, source in enumerate(spec.sources):
        found = opened(source.model_dump_json())
        shards, num_bytes = found.dataset.num_shards, cast(int, found.fingerprint.get("num_bytes") or 0)
        wanted = max(1, -(-num_bytes // PIECE_BYTES))
        parts = min(shards, max(LEAST_PIECES, wanted)) if whole else 1
        for part in range(parts):
            piece = Piece(index, part, parts, number)
            pieces += _divided(piece, found, -(-wanted // parts)) if whole and wanted > parts else [piece]
            number += 1
    return pieces


def _divided(piece: Piece, found: OpenSource, count: int) -> list[Piece]:
    """The piece as `count` ranges of rows, where rows are read by their numbers."""
    files = indexed_files(_dataset(found, piece))
    if files is None:
        return [piece]
    try:
        rows = sum(files.known(file, 1 << ROW_BITS) for file in range(len(files.files)))
    except IrregularError:
        return [piece]
    finally:
        files.close()
    bounds = [rows * number // count for number in range(count)]
    ends: list[int | None] = [*bounds[1:], None]
    return [replace(piece, first=first, last=last) for first, last in zip(bounds, ends, strict=True) if first != last]


def _dataset(found: OpenSource, piece: Piece) -> Any:
    return found.dataset.shard(piece.parts, piece.part, contiguous=True)


def reader_of(spec: BuildSpec, piece: Piece) -> ShareReader:
    """A reader at the start of a piece."""
    found = opened(spec.sources[piece.source].model_dump_json())
    reader = ShareReader(Share(found, 0, 1, _dataset(found, piece), 1, 0), Retry(), spec.on_error)
    reader.seek(Cursor({"file": 0, "before": 0}, piece.first) if piece.first else START)
    return reader


def documents_of(reader: ShareReader, piece: Piece, limit: int | None = None) -> Iterator[Found]:
    """The documents of a piece; what cannot be read is counted by `reader.left_out`, empty ones by `num_skipped`.

    Args:
        limit: rows that are read at most.
    """
    at, end = piece.first, piece.last if limit is None else piece.first + limit
    while end is None or at < end:
        reserved = reader.reserve(ROWS_READ if end is None else min(ROWS_READ, end - at))
        if not reserved.places:
            return
        examples = reader.take(reserved, range(len(reserved.places)))
        for row, example in zip(reserved.places, examples, strict=True):
            if isinstance(example, str):
                yield Found(piece.key(row), example, {})
            elif example is not None:
                kept = {name: cast("str | None", value) for name, value in example.items() if name != "text"}
                yield Found(piece.key(row), str(example["text"]), kept)
        at += len(reserved.places)
