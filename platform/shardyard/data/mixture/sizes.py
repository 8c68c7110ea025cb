"""Sizes of sources, counted once: documents for data.temperature, rows for train.epochs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from shardyard.data.quirks import shard_files
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource, open_for
from shardyard.data.stream.first_rows import is_local
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.mixture.weights import lacks_sizes
from shardyard.recipe.schema import Recipe

_ROWS_AT_ONCE = 1 << 14
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
        opened = open_for(spec, source, training=True)
        size = counted({"documents": opened.fingerprint}, lambda opened=opened: num_documents(opened))  # type: ignore[misc]
        if not size:
            raise DataError(f"data.temperature: {opened.name} has no documents.")
        train[index] = source.model_copy(update={"size": float(size)})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": train})})


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
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(str(number), encoding="ascii")
        beside.replace(path)
    return number
