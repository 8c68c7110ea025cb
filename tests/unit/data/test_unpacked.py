"""Compressed files are unpacked once, in the background; the order of their rows stays the same."""

from __future__ import annotations

import bz2
import csv
import errno
import fcntl
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shardyard.data.index import unpacked
from shardyard.data.index.unpacked import copy_of, make_copy, plan_copies
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.stream.tables import IndexedTables, TableStream
from shardyard.recipe.schema import Source
from support.data_cases import batches, data, documents, global_rows, loader, merged_state, rows
from support.waiting import until


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unpacked"


def zst(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)  # type: ignore[no-any-return]


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zst,
}
SOME = documents(300)


def _csv() -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([["text"], *([text.replace(":", '"\n')] for text in SOME)])
    return file.getvalue().encode()


CONTENT: dict[str, bytes] = {
    ".jsonl": "".join(json.dumps({"text": text}) + "\n" for text in SOME).encode(),
    ".csv": _csv(),
    ".txt": "\n".join(SOME).encode(),
}


def packed(folder: Path, form: str = ".jsonl", how: str = ".gz") -> Path:
    path = folder / f"a{form}{how}"
    path.write_bytes(PACK[how](CONTENT[form]))
    return path


def is_indexed(path: Path) -> bool:
    share = share_of(open_source(Source(path=str(path)), training=True), 0, 2)
    return isinstance(ShareReader(share, Retry())._tables, IndexedTables)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("form", "how"), [(".jsonl", ".gz"), (".csv", ".zst"), (".txt", ".xz"), (".csv", ".gz"), (".jsonl", ".bz2")]
)
def test_a_run_goes_on_by_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, how: str, order: int
) -> None:
    path = packed(tmp_path, form, how)
    source = Source(path=str(path), **({"documents": "lines"} if form == ".txt" else {}))
    recipe = data([source], order=order)
    packed_still = data([source.model_copy(update={"unpack": False})], order=order)
    options: dict[str, Any] = {"streams": 4, "global_batch": 4}
    undisturbed = global_rows(packed_still, 23, 1, **options)
    streamed = merged_state(packed_still, 20, 2, **options)
    batches(recipe, 1, **options)
    until(lambda: copy_of(str(path)) is not None, "the copy is made")
    assert is_indexed(path)
    by_copy = merged_state(recipe, 20, 1, **options)
    assert by_copy != streamed
    monkeypatch.setattr(TableStream, "pull", None)  # Nothing is read from the start.
    assert [rows(batch) for batch in batches(recipe, 3, streamed, **options)] == undisturbed[20:]
    assert [rows(batch) for batch in batches(recipe, 3, by_copy, **options)] == undisturbed[20:]


def test_it_is_announced_once_and_can_be_declined(tmp_path: Path, cache: Path) -> None:
    path = packed(tmp_path)
    with loader(data([Source(path=str(path), unpack=False)])) as opened:
        assert opened.notes == []
        next(opened)
    assert not cache.exists()
    with loader(data([Source(path=str(path))])) as opened:
        (note,) = opened.notes
        assert note.startswith("a.jsonl.gz: unpacked once into ")
        next(opened)
    until(lambda: copy_of(str(path)) is not None, "the copy is made")
    with loader(data([Source(path=str(path))])) as opened:
        assert opened.notes == []


def test_more_files_than_streams_stay_packed(tmp_path: Path, cache: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(CONTENT[".jsonl"]))
    with loader(data([Source(path=str(tmp_path / "*.jsonl.gz"))])) as opened:
        assert opened.notes == []
    assert not cache.exists()


def test_a_changed_file_is_unpacked_anew_and_the_old_copy_removed(tmp_path: Path, cache: Path) -> None:
    path = packed(tmp_path)
    assert make_copy(str(path))
    path.write_bytes(gzip.compress(CONTENT[".jsonl"] * 2))
    assert copy_of(str(path)) is None
    assert make_copy(str(path))
    copy = copy_of(str(path))
    assert copy is not None
    assert copy.read_bytes() == CONTENT[".jsonl"] * 2
    assert len(list(cache.glob("*.jsonl"))) == 1


def test_another_process_makes_the_copy(tmp_path: Path, cache: Path) -> None:
    path = packed(tmp_path)
    assert make_copy(str(path))
    (copy,) = cache.glob("*.jsonl")
    copy.unlink()
    (lock,) = cache.glob("*.lock")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not make_copy(str(path))
    assert make_copy(str(path))


def test_what_a_process_left_when_it_ended_is_removed(tmp_path: Path, cache: Path) -> None:
    path = packed(tmp_path)
    program = (
        "import os, sys\nfrom shardyard.data.index import unpacked\n"
        "unpacked.os.fsync = lambda _: os._exit(9)\nunpacked.make_copy(sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert len(list(cache.glob(".partial-*"))) == 1
    assert make_copy(str(path))
    assert list(cache.glob(".partial-*")) == []


@pytest.mark.parametrize("fault", ["full", "damaged", "read-only"])
def test_without_a_copy_rows_are_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: Path, fault: str
) -> None:
    path = packed(tmp_path)
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:-300])
    if fault == "read-only":
        cache.parent.mkdir()
        cache.write_text("")
    if fault == "full":

        def fsync(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)
    assert not make_copy(str(path))
    assert "is not unpacked" in caplog.text
    assert copy_of(str(path)) is None
    assert fault == "read-only" or list(cache.glob("*.jsonl")) == list(cache.glob(".partial-*")) == []


def test_a_disk_with_little_room_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    path = packed(tmp_path)
    monkeypatch.setattr(unpacked, "_free", lambda _: 100.0)
    assert "there is no room" in str(plan_copies([str(path)]))
    monkeypatch.setattr(unpacked, "_LOOKED_BYTES", 64)
    monkeypatch.setattr(unpacked, "_free", lambda _: 0.0)
    assert not make_copy(str(path))
    assert list(cache.glob("*.jsonl")) == list(cache.glob(".partial-*")) == []
