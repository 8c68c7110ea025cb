"""Where an example lies: the file and the row in it, for messages about single rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shardyard.data.quirks import ShardFile

# Files before the row are counted up to this size: finding a row must not take longer than reading the data.
COUNTED_BYTES = 1 << 28
_BLOCK = 1 << 20


def place_in_files(name: str, files: Sequence[ShardFile], number: int) -> str:
    """`train.jsonl, row 61`: rows of a file are counted from 1.

    Args:
        name: the source, named instead where the file cannot be determined.
        files: the files of a share, in the order in which they are read.
        number: of the example in the share, from 0.
    """
    paths = list(dict.fromkeys(file.path for file in files))
    if len(paths) == 1 and all(file.row_groups is None for file in files):
        return f"{Path(paths[0]).name}, row {number + 1}"
    left, budget = number, COUNTED_BYTES
    try:
        for file in files:
            budget -= 0 if file.path.endswith(".parquet") else Path(file.path).stat().st_size
            before, rows = file_rows(file) if budget >= 0 else (0, None)
            if rows is None:
                break
            if left < rows:
                return f"{Path(file.path).name}, row {before + left + 1}"
            left -= rows
    except (OSError, pa.ArrowException):
        pass
    return f"{name}, row {number + 1} of its part"


def file_rows(file: ShardFile) -> tuple[int, int | None]:
    """The rows of the file before this part, and the rows of the part; None if they cannot be counted."""
    if file.path.endswith(".parquet"):
        metadata = pq.read_metadata(file.path)
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        if file.row_groups is None:
            return 0, sum(groups)
        return sum(groups[: min(file.row_groups)]), sum(groups[index] for index in file.row_groups)
    if not file.path.endswith(".jsonl"):
        return 0, None
    with open(file.path, "rb") as content:
        lines = sum(block.count(b"\n") for block in iter(lambda: content.read(_BLOCK), b""))
    return 0, lines
