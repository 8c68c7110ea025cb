"""The index of a JSONL file: the rows that `datasets` streams, whatever the file looks like and whatever befalls it."""

from __future__ import annotations

import errno
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.index import offsets
from shardyard.data.index.offsets import Offsets, offsets_of
from shardyard.data.index.records import IrregularError, JsonLines
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import TEXT_ONLY, open_source
from shardyard.data.stream import reader
from shardyard.data.stream.reader import START, ShareReader, share_of
from shardyard.data.stream.rows import Position
from shardyard.data.stream.tables import IndexedTables, StreamedTables
from shardyard.errors import DataError
from shardyard.objectives.spec import Kind
from shardyard.recipe.schema import OnError, Source
from support.data_cases import batches, data, documents, global_rows, merged_state, rows, write_jsonl
from support.waiting import until


@pytest.fixture(autouse=True)
def small_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(offsets, "KEPT_FROM_BYTES", 1)


def without_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "indexed_files", lambda *_: None)


def read(
    path: Path, *, stream: int = 0, streams: int = 1, indexed: bool = True, on_error: OnError = "skip", **options: Any
) -> list[Any]:
    opened = open_source(Source(path=str(path), holdout=options.pop("holdout", 0.0)), training=True, **options)
    share = share_of(opened, stream, streams)
    found = ShareReader(share, Retry(), on_error)
    assert isinstance(found._tables, IndexedTables)
    if not indexed:
        found._tables = StreamedTables(share)
    found.seek(START)
    texts: list[Any] = found.read(10**6)
    found.close()
    return texts


LINE = '{{"text": "{}", "n": {}}}'
FILES: dict[str, bytes] = {
    "plain": b'{"text": "a"}\n{"text": "b"}\n',
    "no final line end": b'{"text": "a"}\n{"text": "b"}',
    "returns": b'{"text": "a"}\r\n{"text": "b"}\r\n',
    "returns alone": b'{"text": "a"}\r{"text": "b"}\r',
    "blank lines": b'\n{"text": "a"}\n\n \t\n{"text": "b"}\n\n',
    "byte order mark": b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n',
    "indented": b'  {"text": "a"}  \n\t{"text": "b"}\n',
    "two on a line": b'{"text": "a"}{"text": "b"}\n{"text": "c"} {"text": "d"}\n',
    "braces in texts": b'{"text": "} {"}\n{"text": "}{}{ {"}\n',
    "escapes": json.dumps({"text": 'ü\n"\\ \u2028'}).encode() + b'\n{"text": "b"}\n',
    "nested and missing columns": b'{"text": "a", "more": {"x": [1, {"y": 2}]}}\n{"n": 1}\n{"text": "b"}\n',
    "a date among texts": b'{"text": "a"}\n{"text": "2020-01-01"}\n',
    "a single row": b'{"text": "a"}',
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_that_datasets_streams(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(FILES[name])
    streamed = read(path, indexed=False)
    assert read(path) == streamed
    for stream in range(3):
        assert read(path, stream=stream, streams=3) == read(path, stream=stream, streams=3, indexed=False)


def test_rows_across_blocks_and_longer_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "BLOCK_BYTES", 64)
    texts = [*documents(300), "x" * 1000, *documents(40, "e")]
    path = Path(write_jsonl(tmp_path, [texts]).replace("*", "000"))
    assert read(path) == texts
    assert read(path, stream=2, streams=7) == texts[2::7]


PAIR: dict[str, Kind] = {"messages": "messages"}


def test_columns_of_more_than_one_shape_are_converted_as_datasets_converts_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"arguments": shape}]} for shape in ("x", {"y": 1})]
    chats = [[{"role": "user", "content": f"q{n}", "name": "n"}, calls[n % 2]] for n in range(20)]
    path.write_text("".join(json.dumps({"messages": chat, "n": n}) + "\n" for n, chat in enumerate(chats)))
    options: dict[str, Any] = {"roles": PAIR, "holdout": 0.3}
    streamed = read(path, indexed=False, **options)
    assert 8 < len(streamed) < 20
    assert read(path, **options) == streamed


def test_a_field_that_comes_late_within_a_column_is_not_lost_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    early = [{"messages": [{"role": "user", "content": f"{n}" + "x" * 4000}]} for n in range(2700)]  # > 10 MB
    late = {"messages": [{"role": "user", "content": "q", "weight": 0}]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*early, late]))
    for indexed in (False, True):
        with pytest.raises(DataError, match=r"a.jsonl, row 2701: .*the field 'weight', which the"):
            read(path, indexed=indexed, roles=PAIR, on_error="stop")
        assert len(read(path, indexed=indexed, roles=PAIR)) == 2700


def lines(count: int) -> bytes:
    return "".join(LINE.format(text, n) + "\n" for n, text in enumerate(documents(count))).encode()


def test_the_list_is_kept_and_found_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(50))
    assert Offsets(path, JsonLines()).known(10**9) == 50
    (kept,) = (tmp_path / "cache" / "offsets").iterdir()
    monkeypatch.setattr(JsonLines, "starts", None)  # Nothing is looked for again.
    found = Offsets(path, JsonLines())
    assert found.is_complete
    assert found.read(range(49, 50)) == [lines(50).splitlines(keepends=True)[49]]
    assert kept.stat().st_size == 32 + 8 * 50


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "empty", "another file"])
def test_a_damaged_list_is_made_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(50))
    Offsets(path, JsonLines()).known(10**9)
    (kept,) = (tmp_path / "cache" / "offsets").iterdir()
    content = bytearray(kept.read_bytes())
    content[100] ^= 255
    kept.write_bytes({"shorter": content[:90], "other bytes": content, "empty": b"", "another file": b"x" * 99}[damage])
    assert read(path) == documents(50)
    assert Offsets(path, JsonLines()).is_complete


def test_the_list_of_a_changed_file_is_made_anew_and_the_old_one_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for count in (50, 60):
        path.write_bytes(lines(count))
        assert read(path) == documents(count)
    same_size = lines(60).replace(b"<d7:", b"<e7:")
    path.write_bytes(same_size)
    assert "<e7:" in read(path)[7]
    assert len(list((tmp_path / "cache" / "offsets").iterdir())) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_without_room_for_the_list_rows_are_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(50))

    def replace(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", replace)
    assert read(path) == documents(50)
    assert "cannot be kept" in caplog.text
    assert list((tmp_path / "cache" / "offsets").iterdir()) == []


def test_a_cache_folder_that_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("")
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(5))
    assert read(path) == documents(5)
    assert "cannot be kept" in caplog.text


def test_a_file_that_grows_is_read_as_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(50))
    found = Offsets(path, JsonLines())
    assert found.known(1) == 50
    with path.open("ab") as file:
        file.write(lines(3))
    assert found.known(60) == 50
    assert found.read(range(49, 50)) == [lines(50).splitlines(keepends=True)[49]]
    assert Offsets(path, JsonLines()).known(60) == 53


@pytest.mark.parametrize("change", ["truncated", "overwritten"])
def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(50))
    found = Offsets(path, JsonLines())
    found.known(50)
    if change == "truncated":
        os.truncate(path, 100)
    else:
        path.write_bytes(b" " + lines(50)[:-1])
        os.utime(path, (1, 1))
    with pytest.raises(DataError, match="was changed while it was read"):
        found.read(range(40, 41))


def test_a_file_that_is_replaced_is_read_on_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(50))
    found = Offsets(path, JsonLines())
    found.known(50)
    (tmp_path / "new").write_bytes(b"{}")
    (tmp_path / "new").rename(path)
    assert found.read(range(1)) == [lines(1)]


def test_several_processes_keep_the_same_list(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(200))
    made = [Offsets(path, JsonLines()) for _ in range(3)]
    made[0].known(1)
    words = [found.known(10**6) for found in made]
    assert words == [200] * 3
    assert len(list((tmp_path / "cache" / "offsets").iterdir())) == 1


def test_the_rest_is_found_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "BLOCK_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(500))
    found = offsets_of(path, JsonLines())
    offsets.background.complete(found)
    until(lambda: found.is_complete, "all rows are known")
    assert found.known(10**6) == 500
    assert offsets_of(path, JsonLines()) is found


def test_a_line_without_an_end_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "BLOCK_BYTES", 16)
    monkeypatch.setattr(offsets, "LONGEST_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 500 + b'"}\n')
    with pytest.raises(IrregularError):
        Offsets(path, JsonLines()).known(1)


def test_reading_without_an_index_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(FILES["two on a line"])
    for stream in range(2):
        read(path, stream=stream, streams=2)
    assert caplog.text.count("has no index") == 1


def test_a_million_short_rows_take_eight_bytes_each(tmp_path: Path) -> None:
    block = b'{"text":"a"}\n' * 1000
    starts = JsonLines().starts(block, first=True)
    assert np.array_equal(starts, np.arange(1000) * 13)
    assert starts.dtype == np.int64


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    streams=st.sampled_from([2, 6, 8]),
    window=st.sampled_from([1, 4, 64]),
    holdout=st.sampled_from([0.0, 0.2]),
    world=st.sampled_from([1, 2]),
    step=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_global_batches_are_the_same_with_the_index_and_without(
    counts: list[int], streams: int, window: int, holdout: float, world: int, step: int, seed: int
) -> None:
    """Also resumed in the other way: an older run, and one whose file is no longer indexed, read on where they were."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        shuffled = random.Random(seed)
        texts = [[text if shuffled.random() > 0.1 else "" for text in documents(count + 30)] for count in counts]
        path = write_jsonl(Path(folder), texts)
        other = write_jsonl(Path(folder), [documents(50, "o")], "other")
        recipe = data([Source(path=path, holdout=holdout), Source(path=other, weight=0.4)], shuffle_window=window)
        options: dict[str, Any] = {"streams": streams, "global_batch": streams, "seed": seed}
        indexed, by_index = (
            global_rows(recipe, step + 3, world, **options),
            merged_state(recipe, step, world, **options),
        )
        resumed_streamed = _resumed(recipe, by_index, options, patch)
        without_index(patch)
        assert global_rows(recipe, step + 3, 1, **options) == indexed
        streamed = merged_state(recipe, step, 1, **options)
        assert resumed_streamed == indexed[step:]
        patch.undo()
        assert [rows(batch) for batch in batches(recipe, 3, streamed, **options)] == indexed[step:]


def _resumed(recipe: Any, state: dict[str, Any], options: dict[str, Any], patch: pytest.MonkeyPatch) -> list[Any]:
    with patch.context() as inner:
        without_index(inner)
        return [rows(batch) for batch in batches(recipe, 3, state, **options)]


def test_a_position_by_number_is_small_and_plain() -> None:
    cursor = reader.Cursor({"file": 3, "before": 10**9}, 10**9 + 5, 7)
    stored = json.loads(json.dumps(Position(1, 2, cursor, 3, 4).to_json()))
    assert Position.from_json(stored).cursor == cursor
    assert len(json.dumps(stored)) < 200


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bytes of each read of a file."""
    sizes: list[int] = []
    pread = os.pread

    def count(descriptor: int, size: int, place: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, place)

    monkeypatch.setattr(os, "pread", count)
    return sizes


def test_many_streams_read_a_file_once(tmp_path: Path, counted: list[int]) -> None:
    texts = [f"<{n}:{'x' * 400}>" for n in range(2000)]
    path = Path(write_jsonl(tmp_path, [texts]).replace("*", "000"))
    recipe = data([Source(path=str(path))], shuffle_window=16)
    batches(recipe, 3, streams=64, global_batch=64)
    size = path.stat().st_size
    # Once to find the rows, and once to read those of the windows; samples are of 128 KiB.
    assert sum(counted) < 2.1 * size + (1 << 18)


def test_a_resumed_run_reads_only_its_window(tmp_path: Path, counted: list[int]) -> None:
    texts = [f"<{n}:{'x' * 400}>" for n in range(4000)]
    path = write_jsonl(tmp_path, [texts])
    recipe = data([Source(path=path)], shuffle_window=16, sequence_length=4096)
    options: dict[str, Any] = {"streams": 2, "global_batch": 2}
    undisturbed = [rows(batch) for batch in batches(recipe, 160, **options)]
    state = merged_state(recipe, 155, 1, **options)
    counted.clear()
    assert [rows(batch) for batch in batches(recipe, 1, state, **options)] == undisturbed[155:156]
    assert sum(counted) < 40_000 * 8  # Windows read ahead included; not the 1.6 MB before.


def test_roles_of_text_are_the_only_ones_that_are_parsed(tmp_path: Path) -> None:
    """Columns that nobody reads may differ from row to row."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "n": 1}\n' + '{"text": "b", "n": {"x": 1}}\n')
    assert read(path, roles=TEXT_ONLY) == ["a", "b"]
