"""Rows of local files by their number, as Arrow tables like those that `datasets` streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from shardyard.data.index.offsets import Offsets, background, offsets_of
from shardyard.data.index.records import IrregularError, JsonLines
from shardyard.data.quirks import shard_files
from shardyard.data.tables.table import Parse, parser_of

_SUFFIXES = (".jsonl", ".json")
# Records of more bytes together are parsed in several parts.
_PARSED_BYTES = 1 << 25
_OPEN_FILES = 2


class IndexedFiles:
    """The rows of some local files, one file after the other, with the columns that are read.

    Raises:
        IrregularError: (methods) the records of a file cannot be found by its bytes.
        DataError: (methods) a file was changed while it was read.
    """

    def __init__(self, paths: Sequence[Path], parse: Parse) -> None:
        self.paths, self._parse = paths, parse
        # The files that are open; a window of rows may begin in one and end in the next.
        self._open: dict[int, Offsets] = {}

    def known(self, file: int, wanted: int) -> int:
        """The number of rows of a file, counted at least up to `wanted` if there are as many."""
        return self._offsets(file).known(wanted)

    def table(self, file: int, numbers: Sequence[int]) -> pa.Table:
        """Some rows of a file, by ascending numbers, which it has."""
        offsets = self._offsets(file)
        # A file that was closed since these rows were counted is searched again.
        offsets.known(numbers[-1] + 1)
        lines = offsets.read(numbers)
        parts, first, size = [], 0, 0
        for index, line in enumerate(lines):
            if size and size + len(line) > _PARSED_BYTES:
                parts.append(self._parsed(lines[first:index], file))
                first, size = index, 0
            size += len(line)
        parts.append(self._parsed(lines[first:], file))
        return pa.concat_tables(parts)

    def close(self) -> None:
        """Close the open files."""
        self._open.clear()

    def _offsets(self, file: int) -> Offsets:
        if file not in self._open:
            try:
                offsets = offsets_of(self.paths[file], JsonLines())
            except OSError as error:
                raise IrregularError from error  # Read from its start, the file gives the message.
            while len(self._open) >= _OPEN_FILES:
                del self._open[next(iter(self._open))]
            self._open[file] = offsets
            if not offsets.is_complete:
                background.complete(offsets)
        return self._open[file]

    def _parsed(self, lines: list[bytes], file: int) -> pa.Table:
        # The last line of a file may lack its end.
        block = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines)
        table = self._parse(block, str(self.paths[file]))
        if table.num_rows != len(lines):
            raise IrregularError
        return table


def indexed_files(dataset: Any) -> IndexedFiles | None:
    """The files of a streamed dataset, if they are local JSON Lines."""
    parse, files = parser_of(dataset), shard_files(dataset)
    paths = [Path(file.path) for file in files]
    if parse is None or not files or not all(path.suffix.lower() in _SUFFIXES for path in paths):
        return None
    if any(file.row_groups is not None or "://" in file.path for file in files):
        return None
    return IndexedFiles(paths, parse)
