"""JSON as tables: objects on lines, in a list, or in the columns of one object. Broken lines are marked."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.json as paj
from datasets.table import table_cast
from datasets.utils.json import (
    find_mixed_struct_types_field_paths,
    get_json_field_path_from_pyarrow_json_error,
    insert_json_field_path,
    json_encode_fields_in_json_lines,
    set_json_types_in_feature,
    ujson_dumps,
)

from shardyard.data.tables.fit import MisfitError, fit
from shardyard.data.tables.opened import CHUNK_BYTES, chunks, opened
from shardyard.data.tables.surrogates import HALF, may_have_halves, with_pairs, without_halves
from shardyard.data.tables.table import table_of, without_problems
from shardyard.errors import DataError
from shardyard.recipe.sources.documents import rows_of_document

_DECODER = json.JSONDecoder()
_BLOCK_BYTES = CHUNK_BYTES // 32
_FLAT = ("string", "large_string", "int", "uint", "float", "double", "bool")
# A value that is read from a line; None for a line without anything on it.
Line = tuple[int, Any, str | None]


@dataclass(frozen=True)
class JsonTables:
    """The tables of JSON files: these columns, whatever the others hold."""

    features: datasets.Features
    _schema: pa.Schema = field(init=False)
    # Flat columns are typed while they are parsed, so that others cannot disturb them.
    _options: paj.ParseOptions | None = field(init=False)

    def __post_init__(self) -> None:
        flat = all(_is_flat(feature) for feature in self.features.values())
        schema = self.features.arrow_schema.remove_metadata()
        object.__setattr__(self, "_schema", self.features.arrow_schema)
        options = paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore") if flat else None
        object.__setattr__(self, "_options", options)

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The tables of a file."""
        with opened(path) as file:
            first = 1
            for chunk in chunks(file):
                if first == 1:
                    chunk = chunk.removeprefix(codecs.BOM_UTF8)
                    if not _is_lines(chunk):
                        yield self.table(as_lines(chunk + file.read()), 1)
                        return
                yield self.table(chunk, first)
                first += chunk.count(b"\n")

    def of_records(self, records: Sequence[bytes], _: str) -> pa.Table:
        """The table of some lines of a file."""
        if len(records) == 1 and _may_be_document(records[0]) and not _is_lines(records[0]):
            return self.table(as_lines(records[0]))
        # The last line of a file may lack its end.
        return self.table(b"".join(line if line.endswith(b"\n") else line + b"\n" for line in records))

    def table(self, chunk: bytes, first: int | None = None) -> pa.Table:
        """The table of some lines, of which the first has the number `first` in its file, if that is known."""
        fast = self._parsed(chunk)
        if fast is not None:
            return without_problems(fast)
        columns: dict[str, list[Any]] = {name: [] for name in self.features}
        problems: list[str | None] = []
        halves = may_have_halves(chunk)
        for number, value, problem in read_lines(chunk, first or 1):
            stored, reason = self._stored(value, halves=halves) if isinstance(value, dict) else ({}, None)
            for name, kept in columns.items():
                kept.append(stored.get(name))
            reason = problem or reason
            problems.append(f"line {number}: {reason}" if reason and first is not None else reason)
        return table_of(self.features, columns, problems)

    def _stored(self, value: Mapping[str, object], *, halves: bool) -> tuple[dict[str, object], str | None]:
        """The stored values of a row, repaired where they hold halves of pairs; and what is wrong with it."""
        stored: dict[str, object] = {}
        problem = None
        for name, feature in self.features.items():
            given = value.get(name)
            whole = without_halves(given) if halves else given
            if whole is not given:
                problem = f"{name} holds {HALF}"
            try:
                stored[name] = fit(whole, feature)
            except MisfitError as error:
                return {}, f"{name} holds {error}"
        return stored, problem

    def _parsed(self, chunk: bytes) -> pa.Table | None:
        """The table as pyarrow parses it; None where a line or a value needs a closer look."""
        if self._options is None and any(map(_has_json, self.features.values())):
            return None
        try:
            table = read_blocks(chunk, self._options)
            table = self._complete(table.select([name for name in table.column_names if name in self.features]), table)
            table = table_cast(table, self._schema)
            table.validate(full=True)
        # Not all of pyarrow's errors are its own.
        except (pa.ArrowException, ValueError, TypeError, KeyError):
            return None
        return table

    def _complete(self, table: pa.Table, whole: pa.Table) -> pa.Table:
        if not table.num_columns:
            return self._schema.empty_table() if not whole.num_rows else _nulls(self.features, whole)
        for name in self.features:
            if name not in table.column_names:
                kind = self._schema.field(name).type
                table = table.append_column(name, pa.nulls(table.num_rows, kind))
        return table


def _nulls(features: datasets.Features, whole: pa.Table) -> pa.Table:
    schema = features.arrow_schema
    return pa.Table.from_arrays([pa.nulls(whole.num_rows, schema.field(name).type) for name in features], schema=schema)


def read_blocks(chunk: bytes, options: paj.ParseOptions | None = None) -> pa.Table:
    """The lines as pyarrow parses them, in the blocks in which `datasets` does: they are part of its resumable state.

    Raises:
        pa.ArrowInvalid: it cannot.
    """
    size = max(_BLOCK_BYTES, 16 << 10)
    size = len(chunk) if len(chunk) // 8 > size else size
    while True:
        try:
            return paj.read_json(
                io.BytesIO(chunk),
                read_options=paj.ReadOptions(block_size=size, use_threads=len(chunk) > size),
                parse_options=options,
            )
        except pa.ArrowInvalid as error:
            told = str(error)
            if size >= len(chunk) or ("straddling" not in told and "JSON conversion to" not in told):
                raise
            size *= 2


def read_lines(chunk: bytes, first: int) -> Iterator[Line]:
    """Number, value and problem of each line that is not blank. A problem may come with a repaired value."""
    for number, line in enumerate(chunk.split(b"\n"), first):
        if not line.strip():
            continue
        problem = None
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            problem, text = f"no UTF-8 at byte {error.start + 1}", line.decode(errors="replace")
        try:
            values = _values(text)
        except (ValueError, RecursionError) as error:
            told = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield number, None, problem or f"no JSON: {told}"
            continue
        for value in values:
            row = {"text": value} if isinstance(value, str) else value
            yield number, row, problem if isinstance(row, dict) else "no object of columns"


def _values(text: str) -> list[Any]:
    """The values of a line: one, or several objects after each other, as pyarrow reads them.

    Raises:
        ValueError: it is no JSON.
    """
    values, at, end = list[Any](), 0, len(text)
    while at < end:
        value, at = _DECODER.raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip()))
        values.append(value)
        if not isinstance(value, dict) and text[at:].strip():
            raise json.JSONDecodeError("Extra data", text, at)
        at = end if not text[at:].strip() else at
    return values


def _is_lines(chunk: bytes) -> bool:
    """Whether a file with this beginning has one object on each line."""
    start = chunk.lstrip()
    if start.startswith(b"["):
        return False
    try:
        first = json.loads(start.split(b"\n", 1)[0])
    except ValueError:
        return not _is_one_object(chunk)
    return rows_of_document(first) is None


def _may_be_document(line: bytes) -> bool:
    return b'"paragraphs"' in line or b'"annotations"' in line


def _is_one_object(chunk: bytes) -> bool:
    # The end of a longer file is not there, so an object is taken for one that its first line does not hold.
    if len(chunk) >= CHUNK_BYTES:
        return chunk.split(b"\n", 1)[0].strip() == b"{"
    try:
        return isinstance(json.loads(chunk), dict)
    except ValueError:
        return False


def as_lines(content: bytes) -> bytes:
    """The rows of a whole JSON file, one on each line: of a list, of the only list of an object, or of its columns.

    Raises:
        DataError: it is none of these.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        at = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{at}no JSON: {getattr(error, 'msg', error)}") from error
    rows = value if isinstance(value, list) else rows_of_document(value) or _rows_of(value)
    if rows is None:
        raise DataError("it holds neither a list of rows nor columns of equal length")
    return "\n".join(_dumped(row if not isinstance(row, str) else {"text": row}) for row in rows).encode()


def _dumped(row: Any) -> str:
    try:
        return str(ujson_dumps(row))
    except UnicodeEncodeError:  # It takes no halves of surrogate pairs, which are named with their rows.
        return json.dumps(row)


def _rows_of(value: Any) -> list[Any] | None:
    if not isinstance(value, dict):
        return None
    lists = [inner for inner in value.values() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    if len(lists) == 1:
        return lists[0]
    columns = {name: list(inner.values()) if isinstance(inner, dict) else inner for name, inner in value.items()}
    if not columns or not all(isinstance(inner, list) for inner in columns.values()):
        return None
    lengths = {len(inner) for inner in columns.values()}
    if len(lengths) != 1:
        return None
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def json_features(path: str, most: int = CHUNK_BYTES) -> datasets.Features:
    """The features of a file's columns, as `datasets` infers them from its beginning, broken lines left out.

    Args:
        most: bytes that are read.

    Raises:
        DataError: no line holds an object.
    """
    with opened(path) as file:
        chunk = (file.read(most) + file.readline()).removeprefix(codecs.BOM_UTF8)
        if not _is_lines(chunk):
            try:
                chunk = as_lines(chunk + file.read())
            except DataError as error:
                raise DataError(f"{path}: {error}.") from error
    # What the texts of the first rows hold says nothing about their types.
    chunk = with_pairs(chunk) if may_have_halves(chunk) else chunk
    lines = list(read_lines(chunk, 1))
    good = [value for _, value, _ in lines if isinstance(value, dict)]
    if not good:
        told = f"line {lines[0][0]} holds {lines[0][2]}" if lines else "it is empty"
        raise DataError(f"{path} has no rows: {told}.")
    if any(problem for _, _, problem in lines):
        chunk = b"\n".join(json.dumps(value).encode() for value in good)
    return _inferred(chunk, good)


def _inferred(chunk: bytes, rows: Sequence[Any]) -> datasets.Features:
    paths = find_mixed_struct_types_field_paths(list(rows))
    encoded = json_encode_fields_in_json_lines(_stripped(chunk), paths) if paths else chunk
    while True:
        try:
            table = read_blocks(encoded)
            break
        except pa.ArrowInvalid as error:
            if "JSON parse error: Column(" not in str(error) or ") changed from" not in str(error):
                raise
            path = get_json_field_path_from_pyarrow_json_error(str(error), examples=iter(rows))
            if not path or path in paths:
                raise
            insert_json_field_path(paths, path)
            encoded = json_encode_fields_in_json_lines(_stripped(chunk), paths)
    features = datasets.Features.from_arrow_schema(table.schema)
    return set_json_types_in_feature(features, paths) if paths else features


def inferred_features(values: Sequence[Any]) -> Any:
    """The feature of values of JSON, as `datasets` infers it for a column."""
    rows = [{"value": value} for value in values]
    return _inferred(b"\n".join(json.dumps(row).encode() for row in rows), rows)["value"]


def _stripped(chunk: bytes) -> bytes:
    return b"\n".join(line for line in chunk.splitlines() if line.strip())


def _is_flat(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(_FLAT)


def _has_json(feature: Any) -> bool:
    if isinstance(feature, datasets.Json):
        return True
    if isinstance(feature, Mapping):
        return any(map(_has_json, feature.values()))
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return inner is not None and _has_json(inner)
