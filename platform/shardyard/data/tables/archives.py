"""WebDataset: the members of a tar file as rows, one of all members that have the same name up to its first dot."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa

from shardyard.data.tables.cells import type_of
from shardyard.data.tables.fit import fit
from shardyard.data.tables.lines import inferred_features
from shardyard.data.tables.media import FILE
from shardyard.data.tables.opened import opened
from shardyard.data.tables.surrogates import loads, without_halves
from shardyard.data.tables.table import table_of
from shardyard.errors import DataError

_TEXTS = ("txt", "text", "caption", "transcript", "cls", "cls2", "id")
_CLASSES = ("cls", "cls2")
_PEEKED = 100
# Rows of a table, and bytes after which it is not filled further.
_TABLE_ROWS, _TABLE_BYTES = 256, 1 << 25

Sample = dict[str, bytes]


def samples(path: str) -> Iterator[tuple[str, Sample]]:
    """Name and members of each sample: `a/b.jpg` and `a/b.seg.png` are the members jpg and seg.png of `a/b`.

    Raises:
        DataError: the file is no tar file.
    """
    with opened(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|") as archive:
                key, found = "", Sample()
                for member in archive:
                    folder, _, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, end = name.partition(".")
                    content = archive.extractfile(member) if member.isfile() and stem and end else None
                    if content is None:
                        continue
                    own = f"{folder}/{stem}" if folder else stem
                    if own != key and found:
                        yield key, found
                        found = Sample()
                    key, found[end.lower()] = own, content.read()
                if found:
                    yield key, found
        except tarfile.TarError as error:
            raise DataError(f"{path} cannot be read as a tar file: {error}.") from error


def tar_features(path: str) -> datasets.Features:
    """The features of the first samples: texts, JSON, and files of all other members.

    Raises:
        DataError: there are none.
    """
    first = [sample for _, sample in itertools.islice(samples(path), _PEEKED)]
    if not first:
        raise DataError(f"{path} holds no samples: members of a tar file are named like 0001.jpg and 0001.txt.")
    names = list(dict.fromkeys(name for sample in first for name in sample))
    features: dict[str, object] = {"__key__": datasets.Value("string")}
    for name in names:
        features[name] = FILE
        if _last(name) in _TEXTS:
            cells = [sample[name].decode(errors="replace") for sample in first if name in sample]
            features[name] = datasets.Value(type_of(cells) if _last(name) in _CLASSES else "string")
        elif _last(name) == "json":
            features[name] = inferred_features([_parsed(sample.get(name)) for sample in first])
    return datasets.Features(features)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _parsed(content: bytes | None) -> Any:
    try:
        return without_halves(json.loads(content or b"null"))
    except ValueError:
        return None


@dataclass(frozen=True)
class TarTables:
    """The tables of tar files, with these features."""

    features: datasets.Features

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The tables of a file."""
        rows: list[tuple[str, Sample]] = []
        size = 0
        for key, sample in samples(path):
            rows.append((key, sample))
            size += sum(len(sample.get(name, b"")) for name in self.features)
            if len(rows) == _TABLE_ROWS or size >= _TABLE_BYTES:
                yield self._table(rows)
                rows, size = [], 0
        if rows:
            yield self._table(rows)

    def _table(self, rows: list[tuple[str, Sample]]) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [] for name in self.features}
        problems: list[str | None] = []
        for key, sample in rows:
            problem = None
            for name, kept in columns.items():
                try:
                    kept.append(self._stored(key, sample, name))
                except (ValueError, UnicodeDecodeError) as error:
                    kept.append(None)
                    problem = problem or f"{key}.{name}: {error}"
            problems.append(problem)
        return table_of(self.features, columns, problems)

    def _stored(self, key: str, sample: Mapping[str, bytes], name: str) -> Any:
        if name == "__key__":
            return key
        content = sample.get(name)
        if content is None:
            return None
        if _last(name) == "json":
            return fit(loads(content), self.features[name])
        if _last(name) in _TEXTS:
            text = content.decode()
            return fit(text.strip(), self.features[name]) if _last(name) in _CLASSES else text
        return {"bytes": content, "path": f"{key}.{name}"}
