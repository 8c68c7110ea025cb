"""Files of pictures and recordings as rows: in folders of classes, beside a metadata file, or LibriSpeech's."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from shardyard.data.tables.opened import opened
from shardyard.data.tables.table import table_of
from shardyard.errors import DataError
from shardyard.recipe.sources.files import file_kind
from shardyard.recipe.sources.recognise import Recognised

# A picture or recording: the bytes of its file, or its path.
FILE = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
TABLE_ROWS = 1000


def in_file(path: str) -> dict[str, object]:
    """The stored form of a picture or recording in a file."""
    return {"bytes": None, "path": path}


def by_hash(paths: Sequence[str], root: str) -> list[str]:
    """Paths in an order by hash, because folders are sorted by class; it does not depend on where the root lies."""
    return sorted(paths, key=lambda path: hashlib.sha256(os.path.relpath(path, root).encode()).digest())


@dataclass(frozen=True)
class FolderTables:
    """The files of a folder of pictures or recordings, in an order by hash.

    `label` is the number of the folder of a file among the folders of classes, in their sorted order, if the files lie
    in several folders of the same depth.
    """

    recognised: Recognised

    @property
    def root(self) -> str:
        return self.recognised.root or os.path.commonpath([os.path.dirname(file) for file in self.recognised.files])

    @property
    def column(self) -> str:
        """`image` or `audio`."""
        return "image" if self.recognised.kind == "picture" else "audio"

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty if the files lie in one folder, or at several depths."""
        return class_names(self.recognised.files)

    @property
    def features(self) -> datasets.Features:
        """The columns."""
        label = {"label": datasets.ClassLabel(names=self.classes)} if self.classes else {}
        return datasets.Features({self.column: FILE, **label})

    def tables(self, _: str) -> Iterator[pa.Table]:
        """The tables of the whole folder."""
        classes = {name: number for number, name in enumerate(self.classes)}
        paths = by_hash(self.recognised.files, self.root)
        for first in range(0, len(paths), TABLE_ROWS):
            some = paths[first : first + TABLE_ROWS]
            columns: dict[str, list[Any]] = {self.column: [in_file(path) for path in some]}
            if classes:
                columns["label"] = [classes[Path(path).parent.name] for path in some]
            yield table_of(self.features, columns, [None] * len(some))


def class_names(files: Sequence[str]) -> list[str]:
    """The names of the folders of files, sorted; empty if there is one, or they lie at several depths."""
    folders = {os.path.dirname(file) for file in files}
    names = sorted({os.path.basename(folder) for folder in folders})
    return names if len(names) > 1 and len({folder.count(os.sep) for folder in folders}) == 1 else []


@dataclass(frozen=True)
class LibriSpeechTables:
    """Recordings with the transcripts of `*.trans.txt`, in which each line is the name of a recording and its text."""

    files: Sequence[str]

    features = datasets.Features({"audio": FILE, "text": datasets.Value("string"), "id": datasets.Value("string")})

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The table of one file of transcripts."""
        folder = os.path.dirname(path)
        sounds = {Path(name).stem: name for name in sorted(os.listdir(folder)) if file_kind(name) == "sound"}
        columns: dict[str, list[Any]] = {"audio": [], "text": [], "id": []}
        problems: list[str | None] = []
        with opened(path) as file:
            lines = file.read().decode(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            sound = sounds.get(name)
            columns["audio"].append(in_file(os.path.join(folder, sound)) if sound else None)
            columns["text"].append(text)
            columns["id"].append(name)
            problems.append(None if sound else f"line {number}: there is no recording {name}")
        yield table_of(self.features, columns, problems)

    def ordered(self, root: str) -> list[str]:
        """The files in an order by hash: sorted, they are grouped by speakers."""
        return by_hash(self.files, root)


def with_paths(table: pa.Table, file: str, columns: Mapping[str, Sequence[str]]) -> pa.Table:
    """The table with names of files in place of which there are paths.

    Args:
        file: that the table is of; names are relative to its folder.
        columns: column → further folders, relative to that of the file, in which its files may lie.
    """
    home = file.rpartition("/")[0] if "://" in file else os.path.dirname(os.path.abspath(file))
    for column, folders in columns.items():
        if column not in table.column_names:
            continue
        place = table.column_names.index(column)
        paths = [None if not name else _path(str(name), home, folders) for name in table.column(place).to_pylist()]
        table = table.set_column(place, column, pa.array(paths, pa.string()))
    return table


def _path(name: str, home: str, folders: Sequence[str]) -> str:
    if "://" in name:
        raise DataError(f"{name} is a URL where the path of a file is read; download it, or store the bytes.")
    if "://" in home:
        return f"{home}/{name}"
    path = os.path.join(home, os.path.expanduser(name))
    if not folders or os.path.exists(path):
        return path
    others = (os.path.join(home, folder, name) for folder in folders)
    return next((other for other in others if os.path.exists(other)), path)
