"""Parquet and Arrow files as tables of some columns. Row groups that cannot be read are marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from datasets.iterable_dataset import ArrowExamplesIterable
from datasets.table import table_cast

from shardyard.data.tables.media import with_paths
from shardyard.data.tables.remote import RemoteReader, remote_file
from shardyard.data.tables.table import checked, table_of, with_problems
from shardyard.errors import DataError

RowGroups = tuple[int, ...] | None
_BROKEN = (OSError, pa.ArrowException, ValueError)


def _file(path: str) -> Any:
    return pa.PythonFile(RemoteReader(remote_file(path)), "r") if "://" in path else pa.memory_map(path)


def _broken(path: str) -> tuple[type[Exception], ...]:
    """The errors of a damaged file; those of a server may pass."""
    return (pa.ArrowInvalid,) if "://" in path else _BROKEN


def parquet_features(path: str) -> datasets.Features:
    """The features of a file's columns.

    Raises:
        DataError: it is no Parquet file.
    """
    try:
        return datasets.Features.from_arrow_schema(pq.read_schema(_file(path)))
    except _broken(path) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_first_line(error)}") from error


@dataclass(frozen=True)
class ParquetTables:
    """The tables of Parquet files, local or by URL: these columns, in batches of at most the rows of the first group.

    media: columns of names of files, and further folders in which these may lie.
    """

    features: datasets.Features
    media: Mapping[str, Sequence[str]]

    def stream(self, files: Sequence[str]) -> datasets.IterableDataset:
        """The streamed dataset, of one shard per file; `reshard` makes one per row group."""
        given = {"files": list(files), "row_groups_list": [None] * len(files)}
        found = ArrowExamplesIterable(self._generate, given, self._by_row_groups)
        return datasets.IterableDataset(found, info=datasets.DatasetInfo(features=with_problems(self.features)))

    def _by_row_groups(self, files: Sequence[str], row_groups_list: Sequence[RowGroups]) -> Iterator[dict[str, object]]:
        for file, groups in zip(files, row_groups_list, strict=True):
            each = (
                [(group,) for group in range(pq.read_metadata(_file(file)).num_row_groups)]
                if groups is None
                else [groups]
            )
            yield {"files": [file] * len(each), "row_groups_list": each}

    def _generate(
        self, files: Sequence[str], row_groups_list: Sequence[RowGroups]
    ) -> Iterator[tuple[tuple[str, int], pa.Table]]:
        for file, groups in zip(files, row_groups_list, strict=True):
            for number, table in enumerate(self.tables(file, groups)):
                yield (file, number), table

    def tables(self, file: str, groups: RowGroups = None) -> Iterator[pa.Table]:
        """The tables of a file, or of some of its row groups.

        Raises:
            DataError: it lacks a column, or has it of a type that cannot be converted.
        """
        whole = self.opened(file)
        sizes = [group.num_rows for group in whole.row_groups]
        chosen = list(range(len(sizes))) if groups is None else list(groups)
        for group in chosen:
            yield from self.group_tables(whole, file, group, sizes[chosen[0]])

    def opened(self, file: str) -> ds.ParquetFileFragment:
        """A file that has all columns; it is closed with the last batch that refers to it.

        Raises:
            DataError: it lacks a column.
        """
        whole = ds.ParquetFileFormat().make_fragment(_file(file))
        schema = whole.physical_schema
        if missing := [name for name in self.features if name not in schema.names]:
            raise DataError(f"{file} has no column {missing[0]!r}; it has {', '.join(schema.names)}.")
        return whole

    def group_tables(self, whole: ds.ParquetFileFragment, file: str, group: int, most: int) -> Iterator[pa.Table]:
        """The tables of one row group, of at most `most` rows each. Rows that cannot be read are marked."""
        done = 0
        try:
            part = whole.subset(row_group_ids=[group])
            options: dict[str, object] = {"batch_size": most or 1, "columns": list(self.features)}
            for batch in part.to_batches(**options, batch_readahead=0, fragment_readahead=0):
                table = self._cast(pa.Table.from_batches([batch]), file)
                done += table.num_rows
                yield table
        except _broken(file) as error:
            count = whole.row_groups[group].num_rows - done
            yield self._unreadable(count, f"row group {group + 1}: {_first_line(error)}")

    def _cast(self, table: pa.Table, file: str) -> pa.Table:
        table = checked(with_paths(table, file, self.media))
        try:
            return table_cast(table, with_problems(self.features).arrow_schema)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"{file}: its columns are of other types than those of the first file ({_first_line(error)}); "
                "write them with the same types."
            ) from error

    def _unreadable(self, count: int, problem: str) -> pa.Table:
        return table_of(self.features, {name: [None] * count for name in self.features}, [problem] * count)


@dataclass(frozen=True)
class ArrowTables:
    """The tables of Arrow files as `save_to_disk` writes them, or of Feather files."""

    features: datasets.Features

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The tables of a file."""
        for batch in _batches(path):
            yield self.checked(pa.Table.from_batches([batch]))

    def checked(self, table: pa.Table) -> pa.Table:
        """Rows of a file as those of a stream."""
        return table_cast(checked(table.select(list(self.features))), with_problems(self.features).arrow_schema)


def arrow_features(path: str) -> datasets.Features:
    """The features of a file's columns.

    Raises:
        DataError: it is no Arrow file.
    """
    try:
        with pa.memory_map(path) as file:
            return datasets.Features.from_arrow_schema(_reader(file).schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Arrow: {_first_line(error)}") from error


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(path) as file:
        reader = _reader(file)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            yield from reader


def _reader(file: Any) -> Any:
    magic = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
