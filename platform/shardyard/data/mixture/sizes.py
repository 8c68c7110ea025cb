"""Sizes of sources, counted once: documents for data.temperature, rows for train.epochs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.quirks import shard_files
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource, open_for
from shardyard.data.stream.first_rows import is_local
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.stream.shuffle import Windows
from shardyard.data.whole_files import aside
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.mixture.weights import lacks_sizes
from shardyard.recipe.schema import Recipe, Source
from shardyard.recipe.sources.token_sets import recognised_tokens

_ROWS_AT_ONCE = 1 << 14
_SAMPLED_DOCUMENTS = 64
# Files of more bytes are not counted for information alone.
COUNTED_BYTES = 1 << 28
_CODE = Path(__file__).parents[1]


def with_sizes(recipe: Recipe) -> Recipe:
    """The recipe with the size of each source that data.temperature needs: its documents, empty and held-out ones too.

    Raises:
        DataError: a source is not on this machine, or cannot be read.
    """
    missing, spec = lacks_sizes(recipe.data), objective_spec(recipe.objective)
    if not missing:
        return recipe
    train = list(recipe.data.train)
    for index in missing:
        source = train[index]
        if not is_local(source):
            raise DataError(
                f"data.temperature: {source.path} is not a file of this machine, so its documents cannot be counted; "
                f"give data.train.{index}.size, in the same unit for all sources."
            )
        if recognised_tokens(source, training=True) is not None:
            raise DataError(
                f"data.temperature: {source.path} holds token ids, whose documents are not counted here; give "
                f"data.train.{index}.size, in the same unit for all sources."
            )
        opened = open_for(spec, source, training=True)
        size = counted({"documents": opened.fingerprint}, partial(num_documents, opened))
        if not size:
            raise DataError(f"data.temperature: {opened.name} has no documents.")
        train[index] = source.model_copy(update={"size": float(size)})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": train})})


@dataclass(frozen=True)
class PassSize:
    """What one pass over a source has. rows: estimated from its first documents."""

    documents: int
    rows: float


def pass_of(source: Source, opened: OpenSource, inputs: FormatInputs, objective: str) -> PassSize | None:
    """The size of a pass; None for a source that is not on this machine, or too large to count in a moment.

    Raises:
        DataError: the source cannot be read.
    """
    if not is_local(source) or _bytes_to_read(opened) > COUNTED_BYTES:
        return None
    documents = counted({"documents": opened.fingerprint}, lambda: num_documents(opened))
    reader = ShareReader(share_of(opened, 0, 1), Retry(), inputs.data.on_error)
    order = inputs.data.order
    stream = make_rows(objective, inputs).stream(Windows(reader, (0, 0, 0), 1, repeat=False, order=order))
    ends = False
    try:
        while stream.num_documents < _SAMPLED_DOCUMENTS and not ends:
            ends = stream.next_row() is None
    finally:
        stream.close()
    if ends:
        return PassSize(documents, stream.num_rows)
    left_out = reader.left_out
    seen = stream.num_documents + left_out.num_unusable + sum(left_out.num_filtered.values())
    share = (1.0 - source.holdout) / max(1, seen)
    return PassSize(documents, documents * share * stream.num_rows)


def _bytes_to_read(opened: OpenSource) -> int:
    """Bytes of the files that counting reads whole."""
    files = {file.path for file in shard_files(opened.dataset) if not file.path.endswith(".parquet")}
    return sum(Path(file).stat().st_size for file in files if Path(file).is_file())


def num_documents(opened: OpenSource) -> int:
    """The rows of a source, usable or not.

    Raises:
        DataError: it cannot be read.
    """
    files = shard_files(opened.dataset)
    if files and all(file.path.endswith(".parquet") and Path(file.path).is_file() for file in files):
        paths = dict.fromkeys(file.path for file in files)
        return sum(int(pq.read_metadata(path).num_rows) for path in paths)
    reader, number = ShareReader(share_of(opened, 0, 1), Retry()), 0
    try:
        while found := len(reader.reserve(_ROWS_AT_ONCE).places):
            number += found
    finally:
        reader.close()
    return number


def counted(what: Mapping[str, object], count: Callable[[], int]) -> int:
    """The result of `count`, kept on disk under what it depends on, which is also the code that makes rows."""
    code = [(path.name, path.stat().st_mtime_ns) for path in sorted(_CODE.rglob("*.py"))]
    digest = hashlib.sha256(json.dumps([what, code], sort_keys=True, default=str).encode()).hexdigest()
    configured = os.environ.get("SHARDYARD_CACHE")
    root = Path(configured).expanduser() if configured else Path.home() / ".cache" / "shardyard"
    path = root / "counts" / digest[:32]
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    number = count()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside(path) as beside:
            beside.write_text(str(number), encoding="ascii")
    return number
