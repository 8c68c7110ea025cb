"""Tables as a stream: one shard per file, a table at a time, and a column that says which rows cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
from datasets.iterable_dataset import ArrowExamplesIterable
from datasets.table import table_cast

from shardyard.data.quirks import generator_of

# The column of reasons for which a row cannot be read; null where it can. Other columns of such a row may hold values
# that were repaired.
PROBLEM = "__problem__"
Tables = Callable[[str], Iterator[pa.Table]]


@dataclass(frozen=True)
class Records:
    """Records that can be read alone: `format` knows how they are divided, `parse` makes a table of some of a file.

    Without `parse`, the format makes them itself. `unpack` is that of the source.
    """

    format: object
    parse: Callable[[Sequence[bytes], str], pa.Table] | None = None
    unpack: bool = True


@dataclass(frozen=True)
class _Generator:
    tables: Tables
    records: Records | None

    def __call__(self, original_files: Sequence[str]) -> Iterator[tuple[Any, pa.Table]]:
        for file in original_files:
            for number, table in enumerate(self.tables(file)):
                yield (file, number), table


def stream_of(
    files: Sequence[str], tables: Tables, features: datasets.Features, records: Records | None = None
) -> datasets.IterableDataset:
    """A streamed dataset of files, of which `tables` yields the tables of one; each file is a shard.

    Args:
        records: of the files, where they can be read alone.
    """
    found = ArrowExamplesIterable(_Generator(tables, records), {"original_files": list(files)})
    return datasets.IterableDataset(found, info=datasets.DatasetInfo(features=with_problems(features)))


def records_of(dataset: Any) -> Records | None:
    """The records of a streamed dataset, if they can be read alone."""
    found = generator_of(dataset)
    return found.records if isinstance(found, _Generator) else None


def with_problems(features: Mapping[str, object]) -> datasets.Features:
    """The features with those of the column of problems."""
    return datasets.Features({**features, PROBLEM: datasets.Value("string")})


def table_of(
    features: datasets.Features, columns: Mapping[str, Sequence[Any]], problems: Sequence[str | None]
) -> pa.Table:
    """A table of these features from stored values, with the column of problems."""
    schema = features.arrow_schema
    plain = [pa.array(columns[name], type=_plain(schema.field(name).type)) for name in features]
    table = table_cast(pa.Table.from_arrays(plain, names=list(features)), schema)
    return table.append_column(PROBLEM, pa.array(problems, pa.string()))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without the extensions of `datasets`, which pyarrow cannot make arrays of."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(inner.name, _plain(inner.type)) for inner in kind])
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def without_problems(table: pa.Table) -> pa.Table:
    """The table with the column of problems, all null."""
    return table.append_column(PROBLEM, pa.nulls(table.num_rows, pa.string()))


def checked(table: pa.Table) -> pa.Table:
    """The table with the column of problems: texts of the top level that are no UTF-8 are repaired and marked.

    Raises:
        pa.ArrowInvalid: its values are damaged otherwise.
    """
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return _repaired(table)
    return without_problems(table)


def _repaired(table: pa.Table) -> pa.Table:
    problems: list[str | None] = [None] * table.num_rows
    for place, field in enumerate(table.schema):
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            continue
        texts: list[str | None] = []
        stored = table.column(place).cast(pa.large_binary() if pa.types.is_large_string(field.type) else pa.binary())
        for row, value in enumerate(stored.to_pylist()):
            texts.append(None if value is None else value.decode(errors="replace"))
            if value is not None and value != (texts[-1] or "").encode():
                problems[row] = "no UTF-8"
        table = table.set_column(place, field, pa.array(texts, field.type))
    table.validate(full=True)
    return table.append_column(PROBLEM, pa.array(problems, pa.string()))


def with_problem_texts(table: pa.Table, problems: Sequence[str | None]) -> pa.Table:
    """The table with other reasons in its column of problems."""
    place = table.column_names.index(PROBLEM)
    return table.set_column(place, PROBLEM, pa.array(problems, pa.string()))


def problems_of(table: pa.Table) -> list[str | None] | None:
    """The reasons of a table's rows; None if all can be read."""
    if PROBLEM not in table.column_names or table.column(PROBLEM).null_count == table.num_rows:
        return None
    found: list[str | None] = table.column(PROBLEM).to_pylist()
    return found
