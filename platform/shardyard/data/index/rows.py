"""Rows of local files by their number, as Arrow tables like those that `datasets` streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.json as paj

from shardyard.data.index.offsets import Offsets, background, offsets_of
from shardyard.data.index.records import IrregularError, JsonLines
from shardyard.data.quirks import json_table, shard_files

_SUFFIXES = (".jsonl", ".json")
# Records of more bytes together are parsed in several parts.
_PARSED_BYTES = 1 << 25


class IndexedFiles:
    """The rows of some local files, one file after the other, with the columns that are read.

    Raises:
        IrregularError: (methods) the records of a file cannot be found by its bytes.
        DataError: (methods) a file was changed while it was read.
    """

    def __init__(self, dataset: Any, paths: Sequence[Path], columns: Sequence[str]) -> None:
        self.paths = paths
        self._dataset, self._columns = dataset, columns
        features = datasets.Features({name: dataset.features[name] for name in columns})
        self._schema = features.arrow_schema
        # Only of flat columns is it safe to ignore all else: an unknown field within a column must not be lost.
        flat = all(not pa.types.is_nested(field.type) for field in self._schema)
        self._by_schema = None if any(map(_holds_json, features.values())) else ("ignore" if flat else "infer")
        self._current: tuple[int, Offsets] | None = None

    def known(self, file: int, wanted: int) -> int:
        """The number of rows of a file, counted at least up to `wanted` if there are as many."""
        return self._offsets(file).known(wanted)

    def table(self, file: int, numbers: range) -> pa.Table:
        """Some rows of a file, which must be known."""
        lines = self._offsets(file).read(numbers)
        parts, first, size = [], 0, 0
        for index, line in enumerate(lines):
            if size and size + len(line) > _PARSED_BYTES:
                parts.append(self._parsed(lines[first:index]))
                first, size = index, 0
            size += len(line)
        parts.append(self._parsed(lines[first:]))
        return pa.concat_tables(parts)

    def close(self) -> None:
        """Close the open file."""
        self._current = None

    def _offsets(self, file: int) -> Offsets:
        if self._current is None or self._current[0] != file:
            try:
                offsets = offsets_of(self.paths[file], JsonLines())
            except OSError as error:
                raise IrregularError from error  # Read from its start, the file gives the message.
            self._current = (file, offsets)
            if not offsets.is_complete:
                background.complete(offsets)
        return self._current[1]

    def _parsed(self, lines: list[bytes]) -> pa.Table:
        # The last line of a file may lack its end.
        block = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)
        table = self._parsed_by_schema(block)
        if table is None:
            table = json_table(self._dataset, block).select(self._columns)
        if table.num_rows != len(lines):
            raise IrregularError
        return table

    def _parsed_by_schema(self, block: bytes) -> pa.Table | None:
        """The table, if the values are of the types that are known; else `datasets` converts them."""
        if self._by_schema is None:
            return None
        options = paj.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior=self._by_schema)
        whole = paj.ReadOptions(use_threads=False, block_size=len(block) + 1)
        try:
            table = paj.read_json(pa.BufferReader(block), read_options=whole, parse_options=options)
        except pa.ArrowInvalid:
            return None
        table = table.select(self._columns)
        return table if table.schema.equals(self._schema) else None


def indexed_files(dataset: Any, columns: Sequence[str]) -> IndexedFiles | None:
    """The files of a streamed dataset, if they are local JSON Lines; `columns` are those of the top level."""
    files = shard_files(dataset)
    paths = [Path(file.path) for file in files]
    if not files or not all(path.suffix.lower() in _SUFFIXES for path in paths):
        return None
    if any(file.row_groups is not None or "://" in file.path for file in files):
        return None
    return IndexedFiles(dataset, paths, columns)


def _holds_json(feature: Any) -> bool:
    """Whether values of more than one shape are stored as JSON text anywhere within a column."""
    if isinstance(feature, datasets.Json):
        return True
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _holds_json(feature.feature)
    if isinstance(feature, list):
        return any(map(_holds_json, feature))
    return isinstance(feature, dict) and any(map(_holds_json, feature.values()))
