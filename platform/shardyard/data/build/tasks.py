"""The tasks of a build, each in any process: documents of a piece through some steps, and a file of the output.

A task reads files and writes files; what it returns are counts. Its result is a function of its description, so a task
that is repeated, by whichever worker, writes the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardyard.data.build.counts import (
    SourceCounts,
    StepCounts,
    no_source,
    no_step,
    removed,
)
from shardyard.data.build.duplicates import table_type
from shardyard.data.build.files import disk_in_words, read_json, write_json
from shardyard.data.build.hashes import Hashes, HashText, hasher
from shardyard.data.build.pieces import Found, Piece, documents_of, reader_of
from shardyard.data.build.spec import BuildSpec
from shardyard.data.filters.outcome import Removed
from shardyard.data.sources.sources import source_name, steps_of
from shardyard.data.whole_files import aside

# Text that is written at once: memory of a task is a few times this.
BATCH_BYTES = 16 << 20
GROUP_BYTES = 4 << 20
REMOVED = "removed.npy"


@dataclass(frozen=True)
class PieceTask:
    """Steps `first` to before `last` for one piece, in stage `stage`; then hashes if step `last` compares documents.

    Stage 0 reads the source, at most `limit` rows; others read what the stage before has written of the piece.
    """

    spec: str
    folder: str
    stage: int
    first: int
    last: int
    number: int
    piece: Piece
    limit: int | None = None


class PieceResult(TypedDict):
    """Counts of a piece: of its source in stage 0, and of each step by its number. `num_bytes` of what is left."""

    source_number: int
    source: SourceCounts
    steps: dict[str, StepCounts]
    num_documents: int
    num_bytes: int


@dataclass(frozen=True)
class ShardTask:
    """A file of the output from documents of some pieces: their files, each with the first row and the row after the
    last."""

    spec: str
    parts: Sequence[tuple[str, int, int]]
    path: str


class ShardResult(TypedDict):
    """A file of the output."""

    name: str
    documents: int
    num_bytes: int
    sha256: str


def stage_file(folder: Path | str, stage: int, number: int, suffix: str) -> Path:
    """A file of a piece in a stage."""
    return Path(folder) / f"stage-{stage}" / f"{number:06d}{suffix}"


@functools.lru_cache(maxsize=4)
def _spec(text: str) -> BuildSpec:
    return BuildSpec.model_validate_json(text)


def run_piece(task: PieceTask) -> PieceResult:
    """Write the documents of a piece that some steps leave, and the hashes by which they are compared next.

    Raises:
        DataError: the source cannot be read, or the folder not written.
    """
    done = stage_file(task.folder, task.stage, task.number, ".json")
    with disk_in_words(done.parent):
        found: PieceResult | None = read_json(done)
        if found is None:
            found = _run_piece(task, done)
            write_json(done, found)
    return found


def _run_piece(task: PieceTask, done: Path) -> PieceResult:
    spec = _spec(task.spec)
    source = source_name(spec.sources[task.piece.source].as_recipe_source())
    result: PieceResult = {
        "source_number": task.piece.source,
        "source": no_source(),
        "steps": {},
        "num_documents": 0,
        "num_bytes": 0,
    }
    counts = {number: no_step() for number in range(task.first, task.last)}
    compared = hasher(spec.steps[task.last]) if task.last < len(spec.steps) else None
    documents = _source_documents(task, spec, result["source"]) if task.stage == 0 else _left(task)
    with aside(done.with_suffix(".parquet")) as path, _Writer(path, spec, compared) as writer:
        for document in _through(steps_of(spec.steps[task.first : task.last]).steps, documents, counts, source):
            writer.add(document, source)
        result["num_documents"], result["num_bytes"] = writer.num_documents, writer.num_bytes
        if compared is not None:
            with aside(done.with_suffix(".npy")) as hashes, hashes.open("wb") as file:
                np.save(file, writer.hashes(compared[0]))
    result["steps"] = {str(number): found for number, found in counts.items()}
    return result


def _source_documents(task: PieceTask, spec: BuildSpec, counts: SourceCounts) -> Iterator[Found]:
    reader = reader_of(spec, task.piece)
    try:
        for document in documents_of(reader, task.piece, task.limit):
            counts["documents"] += 1
            counts["bytes"] += len(document.text.encode())
            yield document
    finally:
        reader.close()
    left_out = reader.left_out
    counts["unusable"], counts["repaired"] = left_out.num_unusable, left_out.num_repaired
    counts["empty"], counts["named"] = reader.num_skipped, list(left_out.named)


def _left(task: PieceTask) -> Iterator[Found]:
    """What the stage before has written of the piece, without duplicates."""
    before = stage_file(task.folder, task.stage - 1, task.number, ".parquet")
    gone = np.load(before.parent / REMOVED, mmap_mode="r")
    for batch in pq.ParquetFile(before).iter_batches(batch_size=256):
        keys = batch.column("key").to_numpy()
        places = np.searchsorted(gone, keys)
        is_gone = (places < len(gone)) & (gone[np.minimum(places, len(gone) - 1)] == keys) if len(gone) else keys < 0
        yield from (found for found, out in zip(_found(batch), is_gone.tolist(), strict=True) if not out)


def _found(batch: pa.RecordBatch) -> Iterator[Found]:
    kept = [name for name in batch.schema.names if name not in ("key", "text", "source")]
    for row in batch.to_pylist():
        yield Found(row["key"], row["text"], {name: row[name] for name in kept})


def _through(
    steps: Sequence[tuple[str, Callable[[str], str | Removed]]],
    documents: Iterable[Found],
    counts: dict[int, StepCounts],
    source: str,
) -> Iterator[Found]:
    """The documents that all steps leave."""
    numbered = list(zip(counts.values(), steps, strict=True))
    for document in documents:
        text: str | None = document.text
        for count, (_, clean) in numbered:
            assert text is not None
            outcome = clean(text)
            count["documents"] += 1
            if isinstance(outcome, Removed) or not outcome:
                reason = outcome.reason if isinstance(outcome, Removed) else "nothing is left"
                removed(count, reason, source, text)
                text = None
                break
            count["changed"] += outcome != text
            count["bytes"] += len(outcome.encode())
            text = outcome
        if text is not None:
            yield replace(document, text=text)


class _Writer:
    """Documents to a Parquet file, and their hashes."""

    def __init__(self, path: Path, spec: BuildSpec, compared: tuple[int, HashText] | None) -> None:
        self.num_documents = self.num_bytes = 0
        self._kept = spec.kept_columns
        self._schema = schema_of(spec, key=True)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._compared = compared[1] if compared is not None else None
        self._keys: list[int] = []
        self._hashes: list[Hashes] = []
        self._rows: list[dict[str, object]] = []
        self._size = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, document: Found, source: str) -> None:
        size = len(document.text.encode())
        kept = {name: document.kept.get(name) for name in self._kept}
        self._rows.append({"key": document.key, "text": document.text, "source": source, **kept})
        if self._compared is not None:
            self._keys.append(document.key)
            self._hashes.append(self._compared(document.text))
        self.num_documents += 1
        self.num_bytes += size
        self._size += size
        if self._size >= BATCH_BYTES:
            self._flush()

    def hashes(self, num_hashes: int) -> Any:
        found = np.empty(len(self._keys), table_type(num_hashes))
        found["key"] = self._keys
        found["hashes"] = np.stack(self._hashes) if self._hashes else np.empty((0, num_hashes), np.uint64)
        return found

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._size = [], 0


def schema_of(spec: BuildSpec, *, key: bool = False) -> pa.Schema:
    """Columns of the output; those in between have the key too."""
    own = [("key", pa.uint64())] if key else []
    return pa.schema([*own, *((name, pa.string()) for name in ("text", "source", *spec.kept_columns))])


def write_shard(task: ShardTask) -> ShardResult:
    """Write a file of the output.

    Raises:
        DataError: the folder cannot be written.
    """
    path, spec = Path(task.path), _spec(task.spec)
    done = path.parent / f".{path.name}.json"
    with disk_in_words(path.parent):
        found: ShardResult | None = read_json(done)
        if found is None:
            with aside(path) as partial:
                documents, num_bytes = _write(partial, spec, task.parts)
                found = {"name": path.name, "documents": documents, "num_bytes": num_bytes, "sha256": _sha256(partial)}
            write_json(done, found)
    return found


def _write(path: Path, spec: BuildSpec, parts: Sequence[tuple[str, int, int]]) -> tuple[int, int]:
    schema = schema_of(spec)
    documents = num_bytes = 0
    with _Sink(path, spec, schema) as write:
        for table in _tables(parts, schema):
            write(table)
            documents += table.num_rows
            num_bytes += sum(len(text.encode()) for text in table.column("text").to_pylist())
    return documents, num_bytes


def _tables(parts: Sequence[tuple[str, int, int]], schema: pa.Schema) -> Iterator[pa.Table]:
    """The documents in tables of about `GROUP_BYTES`, whatever the files were divided into."""
    gathered: list[pa.RecordBatch] = []
    size = 0
    for file, first, last in parts:
        before = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=256, columns=schema.names):
            own = batch.slice(
                max(0, first - before), max(0, min(last - before, batch.num_rows) - max(0, first - before))
            )
            before += batch.num_rows
            for row in range(own.num_rows):
                one = own.slice(row, 1)
                gathered.append(one)
                size += len(one.column(0)[0].as_py().encode())
                if size >= GROUP_BYTES:
                    yield pa.Table.from_batches(gathered, schema).combine_chunks()
                    gathered, size = [], 0
    if gathered:
        yield pa.Table.from_batches(gathered, schema).combine_chunks()


class _Sink:
    """A file in the format of the output, to which tables are written."""

    def __init__(self, path: Path, spec: BuildSpec, schema: pa.Schema) -> None:
        self._format = spec.output.format
        if self._format == "parquet":
            self._file: Any = pq.ParquetWriter(path, schema, compression="zstd")
        else:
            self._file = pa.output_stream(str(path), compression="zstd" if self._format == "jsonl.zst" else None)

    def __enter__(self) -> Callable[[pa.Table], None]:
        return self._file.write_table if self._format == "parquet" else self._lines

    def _lines(self, table: pa.Table) -> None:
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode())

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
