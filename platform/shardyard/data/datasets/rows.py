"""From rows to a Parquet file: fixed order, equal row groups, and Hugging Face features in the metadata."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from shardyard.recipe.catalog.datasets import ColumnKind

# Column → value; `_TYPES` gives the type of value for each kind of column.
Row = Mapping[str, object]
# Up to this many streams read separate row groups; more streams share groups.
NUM_GROUPS = 64
LEAST_GROUP_ROWS = 10
SAMPLING_RATE = 16_000

_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES: dict[ColumnKind, pa.DataType] = {
    "text": pa.string(),
    "label": pa.int64(),
    "image": _FILE,
    "audio": _FILE,
    "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "texts": pa.list_(pa.string()),
    "tags": pa.list_(pa.int64()),
    "number": pa.float64(),
    "numbers": pa.list_(pa.float64()),
    "answers": pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int64()))]),
}


class MediaFile(TypedDict):
    """The value of a column of images or audio: the bytes of a file, and its name."""

    bytes: bytes
    path: str


@dataclass
class Converted:
    """The result of a conversion: rows of each split, label names by column, and counts of excluded rows by reason."""

    splits: dict[str, list[Row]]
    label_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def mixed(rows: Sequence[Row], seed: str) -> list[Row]:
    """The rows sorted by hash: sources are often sorted, and each stream reads its row groups consecutively."""
    order = sorted(range(len(rows)), key=lambda index: hashlib.sha256(f"{seed}\0{index}".encode()).digest())
    return [rows[index] for index in order]


def write_rows(
    path: Path, rows: Sequence[Row], columns: Mapping[str, ColumnKind], label_names: Mapping[str, Sequence[str]]
) -> None:
    """Write one split in row groups whose sizes differ by at most one row."""
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    features = {name: _feature(kind, label_names.get(name, ())) for name, kind in columns.items()}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    num_groups = min(NUM_GROUPS, max(1, len(rows) // LEAST_GROUP_ROWS))
    bounds = [len(rows) * index // num_groups for index in range(num_groups + 1)]
    # Image bytes need neither a dictionary nor statistics.
    texts = [name for name, kind in columns.items() if kind in ("text", "label")]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=texts, write_statistics=texts) as writer:
        for first, end in itertools.pairwise(bounds):
            writer.write_table(pa.Table.from_pylist(list(rows[first:end]), schema=schema), row_group_size=end - first)


def rows_sha256(rows: Sequence[Row], columns: Mapping[str, ColumnKind]) -> str:
    """SHA-256 over the rows in order, independent of the Parquet writer: equal digests mean equal rows."""
    digest = hashlib.sha256()
    for row in rows:
        for name in columns:
            _feed(digest, row[name])
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Hash each value with its type and length, so that different rows give different bytes."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        digest.update(f"l{len(value)};".encode())
        for item in value:
            _feed(digest, item)
        return
    data = value if isinstance(value, bytes) else str(value).encode()
    digest.update(f"{type(value).__name__[0]}{len(data)};".encode() + data)


def _feature(kind: ColumnKind, names: Sequence[str]) -> Any:
    """The feature in the format of `datasets`, so that it reads label names, images and audio."""
    if kind == "label":
        return {"names": list(names), "_type": "ClassLabel"}
    if kind == "image":
        return {"_type": "Image"}
    if kind == "audio":
        return {"sampling_rate": SAMPLING_RATE, "_type": "Audio"}
    text, whole, number = ({"dtype": dtype, "_type": "Value"} for dtype in ("string", "int64", "float64"))
    if kind == "answers":
        return {"text": {"feature": text, "_type": "List"}, "answer_start": {"feature": whole, "_type": "List"}}
    if kind == "number":
        return number
    items: dict[ColumnKind, object] = {
        "messages": {"role": text, "content": text},
        "texts": text,
        "numbers": number,
        "tags": {"names": list(names), "_type": "ClassLabel"},
    }
    return {"feature": items[kind], "_type": "List"} if kind in items else text
