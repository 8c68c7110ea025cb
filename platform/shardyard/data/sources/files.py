"""Opening files and folders: what they are, the features of their columns, and a stream of those that are read."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.data_files import resolve_pattern
from datasets.iterable_dataset import IterableDataset

from shardyard.data.tables.archives import TarTables, tar_features
from shardyard.data.tables.cells import CellTables, cell_features
from shardyard.data.tables.columns import ArrowTables, ParquetTables, arrow_features, parquet_features
from shardyard.data.tables.lines import JsonTables, json_features
from shardyard.data.tables.media import FolderTables, LibriSpeechTables, with_paths
from shardyard.data.tables.table import Records, Tables, stream_of
from shardyard.data.tables.texts import TextTables, documents_of
from shardyard.errors import DataError
from shardyard.objectives.spec import Kind
from shardyard.recipe.schema import Source
from shardyard.recipe.seen_columns import damage
from shardyard.recipe.sources.files import MEDIA_FOLDERS, FileKind, bare, file_kind, files_below, is_table, suffixes
from shardyard.recipe.sources.recognise import Recognised, recognise
from shardyard.redaction import VARIABLE_PREFIX, filled

# Top-level columns → the kind of their values; None for a column of which a field is read, or any kind of value.
Wanted = Mapping[str, Kind | None]
MEDIA: tuple[Kind, ...] = ("image", "audio")
# Files whose nested columns are compared, and bytes of each.
_COMPARED_FILES, _COMPARED_BYTES = 16, 1 << 18


@dataclass(frozen=True)
class Found:
    """Data whose columns are not yet chosen.

    features: of all columns. fingerprint: identifies the data. stream: opens the columns that are read. about: what
    was recognised, for people. note: what they should know of it before training.
    """

    features: Any
    fingerprint: Mapping[str, object]
    stream: Callable[[Wanted], IterableDataset]
    about: str = ""
    classes: Sequence[str] = field(default_factory=tuple)
    note: str = ""


def open_files(source: Source, split: str) -> Found | None:
    """Local files or URLs; None if the path is neither.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    path = str(source.path)
    if "://" in path:
        return _of_urls(path, source)
    if source.split not in (None, "train") and not os.path.isdir(os.path.expanduser(path)) and file_kind(path):
        raise DataError(f"{path} has no split {source.split!r}: files have no splits; leave `split` out.")
    recognised = recognise(path, split)
    if recognised is None:
        if file_kind(path) is not None:
            raise DataError(f"{path}: there is no such file; relative paths start at the current folder.")
        return None
    return _of_recognised(path, recognised, source, split)


def _of_urls(path: str, source: Source) -> Found:
    kind = file_kind(path)
    if kind is None or kind in ("picture", "sound", "tokens"):
        raise DataError(f"{path}: files end in {suffixes()}, those of rows each with .gz or .zst after it or not.")
    if source.split not in (None, "train"):
        raise DataError(f"{path} has no split {source.split!r}: files have no splits; leave `split` out.")
    url = filled(path, _variable)
    files = resolve_pattern(url, "") if glob.has_magic(bare(url)) else [url]
    return _of_rows(Recognised("rows", kind, tuple(files)), {"url": path}, source)


def _variable(name: str) -> str:
    """The value of a variable in a URL, from the environment of the process that reads the data."""
    value = os.environ.get(name) if name.startswith(VARIABLE_PREFIX) else None
    if value is None:
        raise DataError(
            f"a URL under data names the variable {name}, which is not set where the data is read; only variables that "
            f"begin with {VARIABLE_PREFIX} are filled in. Export it before the launch or submission."
        )
    return value


def _of_recognised(path: str, recognised: Recognised, source: Source, split: str) -> Found:
    fingerprint = fingerprint_files(recognised.files)
    if recognised.layout in ("rows", "texts") and recognised.root is not None:
        # Those of other splits are part of it.
        fingerprint = fingerprint_files(sorted(file for file in files_below(recognised.root) if is_table(file)))
        recognised = _as_datasets_lists(recognised, recognised.root, source, split)
    if recognised.layout in ("ImageFolder", "AudioFolder"):
        return _media(recognised, fingerprint)
    if recognised.layout == "LibriSpeech":
        tables = LibriSpeechTables(recognised.files)
        files = tables.ordered(str(recognised.root))
        return Found(tables.features, fingerprint, lambda _: stream_of(files, tables.tables, tables.features))
    return _of_rows(recognised, fingerprint, source)


def _as_datasets_lists(recognised: Recognised, folder: str, source: Source, split: str) -> Recognised:
    """The files of a folder in the order of `datasets`, which also follows the splits in its README.md."""
    if any(mark in folder for mark in "[]*?"):
        return recognised
    listed = datasets.load_dataset_builder(folder, name=source.config).config.data_files
    if split not in listed:
        raise DataError(
            f"{folder} has no split {split!r}; it has {', '.join(listed)}. Set `split` to one, or under "
            "data.validation give the training data with `holdout`."
        )
    files = tuple(str(file) for file in listed[split] if file_kind(str(file)) == recognised.kind)
    return Recognised(recognised.layout, recognised.kind, files, folder, tuple(listed))


def _media(recognised: Recognised, fingerprint: Mapping[str, object]) -> Found:
    tables = FolderTables(recognised)
    if recognised.metadata is None:
        name = recognised.root or recognised.files[0]
        features = tables.features

        def stream(_: Wanted) -> IterableDataset:
            return stream_of([name], tables.tables, features)

        return Found(features, fingerprint, stream, recognised.layout, tables.classes)
    kind = file_kind(recognised.metadata)
    assert kind is not None
    beside = Recognised("rows", kind, (recognised.metadata,))
    if "://" not in recognised.metadata:
        fingerprint = {**fingerprint, "metadata": fingerprint_files([recognised.metadata])}
    found = _of_rows(beside, fingerprint, Source())
    return Found(found.features, found.fingerprint, found.stream, f"{recognised.layout} with a metadata file")


def of_files(
    recognised: Recognised, fingerprint: Mapping[str, object], source: Source, features: datasets.Features | None = None
) -> Found:
    """Files by their paths or URLs.

    Args:
        features: of rows, if they are declared; else the first file shows them.

    Raises:
        DataError: the first one cannot be read.
    """
    if recognised.layout in ("ImageFolder", "AudioFolder"):
        return _media(recognised, fingerprint)
    return _of_rows(recognised, fingerprint, source, features)


def _of_rows(
    recognised: Recognised, fingerprint: Mapping[str, object], source: Source, declared: datasets.Features | None = None
) -> Found:
    files, layout = list(recognised.files), recognised.layout
    about: str = layout if layout != "rows" else recognised.kind
    features = declared or _features(recognised.kind, _first_filled(files))

    def stream(wanted: Wanted) -> IterableDataset:
        return _stream(recognised.kind, files, features, wanted, source)

    note = ""
    if recognised.kind == "text" and source.documents is None and len(files) == 1:
        length = documents_of(None, files)
        about = f"a text file in pieces of about {length} characters"
        note = (
            f"{Path(files[0]).name} is a single text file: it is divided into pieces of about {length} characters that "
            "end with a paragraph, line, sentence or word, which are dealt and held out as documents are (`documents` "
            "of the source divides it otherwise)"
        )
    return Found(features, fingerprint, stream, about, note=note)


def _first_filled(files: Sequence[str]) -> str:
    """The first file that is not empty, which shows the columns.

    Raises:
        DataError: it is a pointer to the file.
    """
    local = [file for file in files if "://" not in file]
    first = next((file for file in local if os.path.getsize(file)), files[0])
    told = damage(first) if local and os.path.getsize(first) else None
    if told is not None:
        raise DataError(f"{first} {told}.")
    return first


def _features(kind: FileKind, first: str) -> Any:
    match kind:
        case "json":
            return json_features(first)
        case "csv":
            return cell_features(first)
        case "parquet":
            return parquet_features(first)
        case "arrow":
            return arrow_features(first)
        case "tar":
            return tar_features(first)
        case "tokens":
            raise DataError(f"{first} holds token ids, and a text is read here; give the text from which it was made.")
        case _:
            return TextTables().features


def _stream(
    kind: FileKind, files: Sequence[str], features: Mapping[str, object], wanted: Wanted, source: Source
) -> IterableDataset:
    """The stream of the columns that are read, typed by what is asked of them."""
    media = {
        column: _clips(files[0])
        for column, what in wanted.items()
        if what in MEDIA and (kind == "csv" or _holds_names(features[column]))
    }
    chosen = datasets.Features({column: features[column] for column in wanted})
    if kind == "parquet":
        return ParquetTables(chosen, media).stream(files)
    if kind == "text":
        texts = TextTables(documents_of(source.documents, files))
        alone = None if texts.documents == "file" else Records(texts, texts.of_records, source.unpack)
        return stream_of(files, texts.tables, texts.features, alone)
    if kind in ("json", "csv"):
        rows = JsonTables(_json_types(chosen, wanted, files)) if kind == "json" else CellTables(list(wanted))

        def parse(records: Sequence[bytes], file: str) -> pa.Table:
            return with_paths(rows.of_records(records, file), file, media)

        return stream_of(files, _with_media(rows.tables, media), rows.features, Records(rows, parse, source.unpack))
    tables = ArrowTables(chosen) if kind == "arrow" else TarTables(chosen)
    if kind == "arrow" and not media:
        return stream_of(files, tables.tables, tables.features, Records(tables))
    return stream_of(files, _with_media(tables.tables, media), tables.features)


def _with_media(tables: Tables, media: Mapping[str, Sequence[str]]) -> Tables:
    if not media:
        return tables
    return lambda file: (with_paths(table, file, media) for table in tables(file))


def _clips(file: str) -> Sequence[str]:
    """Folders beside a file in which what it names may lie, as Common Voice's recordings in `clips`."""
    if "://" in file:
        return ()
    return tuple(name for name in MEDIA_FOLDERS if os.path.isdir(Path(file).parent / name))


def _holds_names(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return isinstance(inner, datasets.Value) and inner.dtype in ("string", "large_string")


def _json_types(chosen: datasets.Features, wanted: Wanted, files: Sequence[str]) -> datasets.Features:
    """Text where text is asked for, and JSON where the files differ or the first rows hold nothing."""
    typed = dict(chosen)
    for column, feature in chosen.items():
        scalar = isinstance(feature, datasets.Value)
        if scalar and (wanted[column] == "text" or (wanted[column] in MEDIA and feature.dtype == "null")):
            typed[column] = datasets.Value("string")
        elif scalar and feature.dtype == "null":
            typed[column] = datasets.Json()
    nested = [column for column, feature in typed.items() if not isinstance(feature, datasets.Value | datasets.Json)]
    for file in files[1:_COMPARED_FILES] if nested else ():
        other = json_features(file, _COMPARED_BYTES)
        for column in nested:
            if column in other and other[column] != chosen[column]:
                typed[column] = datasets.Json()
    return datasets.Features(typed)


def fingerprint_files(files: Sequence[str]) -> dict[str, object]:
    """Names and sizes of files: hashing the content would read every byte once before training."""
    sizes = [(Path(file).name, Path(file).stat().st_size) for file in files]
    digest = hashlib.sha256(repr(sizes).encode()).hexdigest()
    return {"num_files": len(files), "num_bytes": sum(size for _, size in sizes), "names_and_sizes_sha256": digest}
