"""Rows by number of CSV, text, Parquet and Arrow files: those that are streamed, in every way of reading them."""

from __future__ import annotations

import csv
import json
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.index import offsets
from shardyard.data.index.cells import Cells
from shardyard.data.index.texts import Documents
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source
from shardyard.data.stream import reader
from shardyard.data.stream.reader import START, ShareReader, share_of
from shardyard.data.stream.tables import IndexedTables, StreamedTables
from shardyard.data.tables import texts
from shardyard.data.tables.cells import Dialect
from shardyard.recipe.schema import Source
from support.data_cases import batches, data, documents, global_rows, merged_state, rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(offsets, "KEPT_FROM_BYTES", 1)


def read(path: Path, *, stream: int = 0, streams: int = 1, indexed: bool = True, **options: Any) -> list[Any]:
    """What a stream reads, as indexed rows or in spite of them."""
    share = share_of(open_source(Source(path=str(path), **options), training=True), stream, streams)
    found = ShareReader(share, Retry())
    assert isinstance(found._tables, IndexedTables)
    if not indexed:
        found._tables = StreamedTables(share)
    found.seek(START)
    some: list[Any] = found.read(10**6)
    found.close()
    # Streamed, a row is also named by its line.
    return [*some, re.sub(r"line \d+: ", "", json.dumps(found.left_out.counts()))]


def check(path: Path, **options: Any) -> list[Any]:
    """Check that all ways of reading agree; returns the rows."""
    streamed = read(path, indexed=False, **options)
    assert read(path, **options) == streamed
    for stream in range(3):
        shares = {"stream": stream, "streams": 3, **options}
        assert read(path, **shares) == read(path, indexed=False, **shares)
    return streamed


CSV: dict[str, bytes] = {
    "plain": b"text,n\na,1\nb,2\n",
    "no final line end": b"text,n\na,1\nb,2",
    "returns": b"text,n\r\na,1\r\nb,2\r\n",
    "returns alone": b"text,n\ra,1\rb,2\r",
    "blank lines": b"\n\r\ntext,n\n\na,1\n\n\nb,2\n\n",
    "a line of spaces": b"text,n\na,1\n   \nb,2\n",
    "quoted line ends": b'text,n\n"a\nb\r\n\nc",1\nd,2\n"e\n",3\n',
    "quoted quotes": b'text,n\n"a ""b"" c",1\n"""",2\n"""\n""",3\nd,4\n',
    "quotes within cells": b'text,n\n5" disk,1\nb "c\nd" e,2\nf,3\n',
    "a quote that is closed late": b'text,n\n"a"b,1\n"c"d"e,2\n"f\ng"h,"i\nj"\nk,5\n',
    "a quote that is never closed": b'text,n\na,1\n"b,2\nc,3\n',
    "byte order mark": b'\xef\xbb\xbf"text","n"\na,1\nb,2\n',
    "quoted header over lines": b'text,"n\nm"\na,1\n"b\n",2\n',
    "too many and too few cells": b"text,n\na,1,2\nb\n\nc,3\n",
    "no UTF-8": b"text,n\na\xff,1\nb,2\n\xe2\x82\xac,3\n",
    "semicolons": b'text;n\n"a;\nb";1\nc;2\n',
    "only a header": b"text,n\n",
    "an empty quoted cell": b'text,n\n"",1\n"a",2\n',
    "other line separators": "text,n\na\x85b\u2028c\x0b,1\n\x1c,2\n".encode(),
}


@pytest.mark.parametrize("block", [8, 1 << 24])
@pytest.mark.parametrize("name", CSV)
def test_records_of_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(offsets, "BLOCK_BYTES", block)
    path = tmp_path / "a.csv"
    path.write_bytes(CSV[name])
    check(path)


def test_tabs_whose_quotes_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tn\n"a\t1\nb"\t2\nc\t3\n')
    assert check(path)[:3] == ['"a', 'b"', "c"]


CELL = st.text(alphabet='ab",\n\r ;é\U0001f600', max_size=6)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=12), raw=st.booleans(), block=st.integers(1, 40))
def test_any_cells(cells: list[list[str]], raw: bool, block: int) -> None:
    """Also unquoted, when their quotes, commas and line ends divide cells and records as they happen to do."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(offsets, "BLOCK_BYTES", block)
        path = Path(folder) / "a.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            file.write("text,n\n")
            if raw:
                file.write("\n".join(",".join(row) for row in cells))
            else:
                csv.writer(file).writerows(cells)
        assert read(path) == read(path, indexed=False)


def test_regular_csv_is_not_parsed_to_find_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cells, "_parsed_ends", None)
    block = b'text,n\r\n"a, ""b""\r\nc",1\r\n' + b"d,2\r\n" * 3
    starts, length = Cells(Dialect(",")).find(block, first=True, last=False)
    assert starts.tolist() == [8, 25, 30, 35]
    assert length == len(block)


BOOK = "One.\nTwo, a longer line.\r\n\r\n \t\n\n  Three\u2028 é€😀.\rFour\n\u3000\n\n\n# Five\n" * 6 + "\xa0\nSix \n\n "
WAYS: tuple[str | int, ...] = ("lines", "paragraphs", 5, 16, 40, 300, "/^# /", "/T/")


@pytest.mark.parametrize("part", [1, 7, 64, 10 << 20])
@pytest.mark.parametrize("documents", WAYS)
def test_documents_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: str | int, part: int) -> None:
    monkeypatch.setattr(texts, "PART_BYTES", part)
    path = tmp_path / "a.txt"
    path.write_bytes(BOOK.encode() * 2 + b"\xff\xe2\x82 end\r")
    assert len(check(path, documents=documents)) > 2


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="ab \n\r\t#é\u3000\U0001f600", max_size=60),
    end=st.sampled_from([b"", b"\r", b"\xe2", b"\n\n"]),
    way=st.sampled_from(WAYS),
    part=st.integers(1, 30),
)
def test_any_text(text: str, end: bytes, way: str | int, part: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "PART_BYTES", part)
        path = Path(folder) / "a.txt"
        path.write_bytes(text.encode() + end)
        assert read(path, documents=way) == read(path, documents=way, indexed=False)


def test_a_long_document_is_found_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "PART_BYTES", 8)
    found = Documents(texts.TextTables("paragraphs"))
    starts, length = found.find(b"ab", first=True, last=False)
    assert (starts.tolist(), length) == ([], 0)
    starts, length = found.find("é\r\n\r\nb".encode(), first=True, last=False)
    assert (starts.tolist(), length) == ([0, 2], 6)
    assert starts.dtype == np.int64


def write_parquet(path: Path, some: list[str], group: int) -> None:
    numbers = pa.array(range(len(some)))
    pq.write_table(pa.table({"n": numbers, "text": some}), path, row_group_size=group)


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_rows_of_parquet(tmp_path: Path, group: int) -> None:
    for number in range(2):
        write_parquet(tmp_path / f"{number}.parquet", documents(20 + number, str(number)), group)
    assert len(check(tmp_path / "*.parquet")) > 40


def test_a_row_group_is_decoded_once_for_all_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.data.tables.columns import ParquetTables

    write_parquet(tmp_path / "a.parquet", documents(400), 100)
    decoded: list[int] = []
    plain = ParquetTables.group_tables

    def group_tables(self: Any, whole: Any, file: str, group: int, most: int) -> Any:
        decoded.append(group)
        return plain(self, whole, file, group, most)

    monkeypatch.setattr(ParquetTables, "group_tables", group_tables)
    batches(data([Source(path=str(tmp_path / "a.parquet"))], prefetch=1), 2, streams=16, global_batch=16)
    assert sorted(decoded) == [0, 1, 2, 3]


def test_a_broken_row_group_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [random.Random(n).randbytes(40).hex() for n in range(300)], 100)
    content = bytearray(path.read_bytes())
    begin = pq.read_metadata(path).row_group(1).column(1).data_page_offset
    content[begin : begin + 60] = b"\xff" * 60
    path.write_bytes(content)
    assert len(check(path)[:-1]) == 200


@pytest.mark.parametrize("stream", [True, False])
def test_rows_of_arrow(tmp_path: Path, stream: bool) -> None:
    table = pa.table({"text": documents(50)})
    path = tmp_path / "a.arrow"
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opened(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=8)
    assert check(path)[:-1] == documents(50)


def test_rows_of_a_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": documents(60), "n": list(range(60))}).save_to_disk(
        str(tmp_path / "saved"), num_shards=2
    )
    assert check(tmp_path / "saved")[:-1] == documents(60)


def _as_csv(path: Path, some: list[str]) -> str:
    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text.replace(":", ':\n"')] for text in some)])
    return str(path.with_suffix(".csv"))


def _as_text(path: Path, some: list[str]) -> str:
    path.with_suffix(".txt").write_text("\n".join(some))
    return str(path.with_suffix(".txt"))


def _as_parquet(path: Path, some: list[str]) -> str:
    write_parquet(path.with_suffix(".parquet"), some, 9)
    return str(path.with_suffix(".parquet"))


def _as_arrow(path: Path, some: list[str]) -> str:
    table = pa.table({"text": some})
    with pa.ipc.new_file(str(path.with_suffix(".arrow")), table.schema) as writer:
        writer.write_table(table, max_chunksize=8)
    return str(path.with_suffix(".arrow"))


def _as_jsonl(path: Path, some: list[str]) -> str:
    path.with_suffix(".jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    return str(path.with_suffix(".jsonl"))


FORMATS: dict[str, Callable[[Path, list[str]], str]] = {
    "csv": _as_csv,
    "text": _as_text,
    "parquet": _as_parquet,
    "arrow": _as_arrow,
    "jsonl": _as_jsonl,
}


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=4, deadline=None)
@given(
    count=st.integers(40, 90),
    streams=st.sampled_from([2, 6, 8]),
    window=st.sampled_from([1, 4, 64]),
    order=st.sampled_from([1, 2]),
    world=st.sampled_from([1, 2]),
    step=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_global_batches_are_the_same_with_the_index_and_without(
    form: str, count: int, streams: int, window: int, order: int, world: int, step: int, seed: int
) -> None:
    """Whatever the number of ranks, and after an interruption in which the way of reading changes."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        shuffled = random.Random(seed)
        some = [text if shuffled.random() > 0.1 else "" for text in documents(count)]
        path = FORMATS[form](Path(folder) / "a", some)
        source = Source(path=path, holdout=0.2, **({"documents": 20} if form == "text" else {}))
        recipe = data([source], shuffle_window=window, order=order)
        options: dict[str, Any] = {"streams": streams, "global_batch": streams, "seed": seed}
        indexed = global_rows(recipe, step + 3, world, **options)
        by_index = merged_state(recipe, step, world, **options)
        patch.setattr(reader, "indexed_files", lambda *_: None)
        assert global_rows(recipe, step + 3, 1, **options) == indexed
        streamed = merged_state(recipe, step, world, **options)
        assert [rows(batch) for batch in batches(recipe, 3, by_index, **options)] == indexed[step:]
        patch.undo()
        for state in (streamed, by_index):
            assert [rows(batch) for batch in batches(recipe, 3, state, **options)] == indexed[step:]
