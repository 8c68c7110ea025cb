"""The first values of columns of local files, so that wrong ones are found before anything starts.

Reads JSON, CSV and Parquet; whatever cannot be read here is left to the run.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence

from shardyard.recipe.seen_columns import PEEK_CHARACTERS, PEEK_ROWS, delimiter_of, document_rows, opened_text
from shardyard.recipe.sources.files import compression, file_kind, suffix

SeenRow = dict[str, object]


def first_rows(file: str, columns: Sequence[str]) -> list[SeenRow]:
    """Some columns of the first rows of a file; empty if they cannot be read here. Cells of CSV are texts."""
    kind = file_kind(file)
    try:
        if kind == "parquet":
            return _of_parquet(file, columns)
        if kind not in ("json", "csv") or compression(file) == ".zst":
            return []
        with opened_text(file) as text:
            beginning = text.read(PEEK_CHARACTERS)
    # The errors of pyarrow and of the compressions are also OSError, ValueError or EOFError.
    except (OSError, ValueError, EOFError):
        return []
    whole = len(beginning) < PEEK_CHARACTERS
    rows = _of_csv(file, beginning) if kind == "csv" else _of_json(beginning, whole=whole)
    some = rows if whole or kind == "json" else rows[:-1]
    return [{column: row.get(column) for column in columns} for row in some[:PEEK_ROWS]]


def _of_parquet(file: str, columns: Sequence[str]) -> list[SeenRow]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        schema = opened.schema_arrow
        # The bytes of pictures are many, and of no interest here.
        present = [name for name in columns if name in schema.names and not _holds_bytes(str(schema.field(name).type))]
        batch = next(opened.iter_batches(batch_size=PEEK_ROWS, columns=present), None)
    return [] if batch is None else [dict(row) for row in batch.to_pylist()]


def _holds_bytes(kind: str) -> bool:
    return "binary" in kind or "struct" in kind


def _of_csv(file: str, beginning: str) -> list[SeenRow]:
    try:
        lines = beginning.lstrip("\r\n")
        delimiter = delimiter_of(lines.partition("\n")[0], suffix(file))
        found = list(itertools.islice(csv.DictReader(io.StringIO(lines, newline=""), delimiter=delimiter), PEEK_ROWS))
    except csv.Error:
        return []
    return [{str(name).strip(): cell for name, cell in row.items()} for row in found]


def _of_json(beginning: str, *, whole: bool) -> list[SeenRow]:
    if whole and (rows_within := document_rows(beginning)) is not None:
        return rows_within
    if beginning.lstrip().startswith("["):
        try:
            found = json.loads(beginning) if whole else []
        except ValueError:
            return []
        return [row for row in found if isinstance(row, dict)]
    lines = beginning.splitlines()
    rows = []
    for line in lines if whole else lines[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        rows += [value] if isinstance(value, dict) else []
    return rows
