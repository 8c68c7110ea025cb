"""Rows and files that cannot be read: left out and named by `data.on_error`, repaired, or refused with what to do."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from fsspec.registry import _registry

from shardyard.data.media.audio import read_audio
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_for
from shardyard.data.stream.reader import START, ShareReader, share_of
from shardyard.errors import DataError, UnusableRowError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Source

Case = tuple[Source, str, list[Any], str]


def write(path: Path, content: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def reader_of(source: Source, objective: str, on_error: Any) -> ShareReader:
    opened = open_for(objective_spec(objective), source, training=True)
    reader = ShareReader(share_of(opened, 0, 1), Retry(), on_error)
    reader.seek(START)
    return reader


def file(name: str, content: bytes | str, rows: list[Any], told: str, objective: str = "causal_lm") -> Any:
    def made(folder: Path) -> Case:
        return Source(path=write(folder / name, content)), objective, rows, told

    return made


def broken_row_group(folder: Path) -> Case:
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"text": [f"{n}" for n in range(6)]}), path, row_group_size=2, compression="gzip")
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(bytes(content))
    return Source(path=str(path)), "causal_lm", ["0", "1", "4", "5"], "rows.parquet, row 3: row group 2: "


def parquet_that_is_no_utf8(folder: Path) -> Case:
    texts = pa.array([b"a", b"b\xff", b"c"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": texts}), folder / "rows.parquet")
    return Source(path=str(folder / "rows.parquet")), "causal_lm", ["a", "c"], "rows.parquet, row 2: no UTF-8"


def a_struct_of_nulls(folder: Path) -> Case:
    rows = [{"image": {"bytes": None, "path": None}, "label": 0}, {"image": {"bytes": b"x", "path": "a"}, "label": 1}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows, schema=pa.schema([("image", kind), ("label", pa.int64())]))
    pq.write_table(table, folder / "rows.parquet")
    return Source(path=str(folder / "rows.parquet")), "image_classification", rows[1:], "rows.parquet, row 1: no image"


def an_unnamed_recording(folder: Path) -> Case:
    write(folder / "1-2.trans.txt", "1-2-0000 ONE\n")
    write(folder / "1-2-0001.flac", "")
    told = "1-2.trans.txt, row 1: line 1: there is no recording 1-2-0000"
    return Source(path=str(folder)), "speech_to_text", [], told


def surrogates_in_a_tar(folder: Path) -> Case:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, content in (("0.json", b'{"text": "a"}'), ("1.json", b'{"text": "b\\ud800"}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    source = Source(path=str(folder / "a.tar"), text_column="json.text")
    return source, "causal_lm", ["a"], "a.tar, row 2: 1.json: half of a surrogate pair"


PAIRS = "text,text_pair,label\na,b,0\nc,,1\nd,e,\nf,g,x\nh,i,1\n"
PAIR_ROWS = [{"text": "a", "text_pair": "b", "label": 0}, {"text": "h", "text_pair": "i", "label": 1}]

ROWS: dict[str, Callable[[Path], Case]] = {
    "a broken line": file(
        "a.jsonl", '{"text": "a"}\n{"text": \n{"text": "c"}\n', ["a", "c"], "a.jsonl, row 2: line 2: no JSON: Expecting"
    ),
    "a broken object": file(
        "a.jsonl",
        '{"text": "a"}\n\n{"text": b}\n{"text": "c"}\n',
        ["a", "c"],
        "a.jsonl, row 2: line 3: no JSON: Expecting value",
    ),
    "a line without an object": file(
        "a.jsonl", '{"text": "a"}\n7\n{"text": "c"}\n', ["a", "c"], "a.jsonl, row 2: line 2: no object of columns"
    ),
    "half of a surrogate pair": file(
        "a.jsonl",
        '{"text": "a", "meta": "\\ud83d"}\n{"text": "b\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n',
        ["a", "😀"],
        "a.jsonl, row 2: line 2: text holds half of a surrogate pair",
    ),
    "half of a surrogate pair in a list": file(
        "a.json", '["a", "b\\udc00"]', ["a"], "a.json, row 2: line 2: text holds half of a surrogate pair"
    ),
    "half of a surrogate pair in a conversation": file(
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "q\\ud800"}]}\n',
        [],
        "a.jsonl, row 1: line 1: messages holds half of a surrogate pair",
        "instruction",
    ),
    "half of a surrogate pair in JSON of a tar": surrogates_in_a_tar,
    "a nested text": file(
        "a.jsonl", '{"text": "a"}\n{"text": ["b"]}\n', ["a"], "a.jsonl, row 2: no text where text is read: ['b']"
    ),
    "JSON that is no UTF-8": file(
        "a.jsonl", b'{"text": "a"}\n{"text": "b\xff"}\n', ["a"], "a.jsonl, row 2: line 2: no UTF-8 at byte 12"
    ),
    "CSV that is no UTF-8": file("a.csv", b"n,text\n1,a\n2,b\xff\n3,c\n", ["a", "c"], "a.csv, row 2: no UTF-8"),
    "a text that is no UTF-8": file("a.txt", b"a\xffb", [], "a.txt, row 1: no UTF-8"),
    "too many cells": file(
        "a.csv", 'text,n\na,1\nb,2,3\n"c\nd",4\n', ["a", "c\nd"], "a.csv, row 2: 3 cells under 2 columns"
    ),
    "no second text": file("a.csv", PAIRS, PAIR_ROWS, "a.csv, row 2: no text_pair", "text_classification"),
    "a broken row group": broken_row_group,
    "Parquet that is no UTF-8": parquet_that_is_no_utf8,
    "a struct of nulls": a_struct_of_nulls,
    "a transcript without its recording": an_unnamed_recording,
}


@pytest.mark.parametrize("name", ROWS)
def test_unreadable_rows_are_left_out_and_named(tmp_path: Path, name: str) -> None:
    source, objective, rows, told = ROWS[name](tmp_path)
    reader = reader_of(source, objective, "skip")
    assert reader.read(100) == rows
    assert reader.left_out.num_unusable >= 1
    assert reader.left_out.named[0].startswith(told)
    with pytest.raises(UnusableRowError) as caught:
        reader_of(source, objective, "stop").read(100)
    assert str(caught.value).startswith(told)
    assert "set data.on_error to skip or repair" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in ROWS if "UTF-8" in name or name == "half of a surrogate pair"])
def test_invalid_utf8_can_be_repaired(tmp_path: Path, name: str) -> None:
    source, objective, _, _ = ROWS[name](tmp_path)
    reader = reader_of(source, objective, "repair")
    assert any("\ufffd" in str(row) for row in reader.read(100))
    assert (reader.left_out.num_unusable, reader.left_out.num_repaired) == (0, 1)


def no_columns(folder: Path) -> tuple[Source, str, str]:
    path = write(folder / "a.csv", "q,a\n1,x\n")
    return Source(path=path), "causal_lm", "has no column 'text'; it has q, a. Set text_column to one"


def no_labels(folder: Path) -> tuple[Source, str, str]:
    path = write(folder / "a.jsonl", '{"text": "a", "label": [1], "n": 1}\n{"text": "b", "label": [2], "n": 2}\n')
    told = "column 'label' holds nested values, not whole numbers; columns of whole numbers: n"
    return Source(path=path), "text_classification", told


def urls(folder: Path) -> tuple[Source, str, str]:
    path = write(folder / "a.jsonl", json.dumps({"image": "https://host/a.png", "label": 1}))
    return Source(path=path), "image_classification", "is a URL where the path of a file is read; download it"


def files_of_other_columns(folder: Path) -> tuple[Source, str, str]:
    write(folder / "a.csv", "text\na\n")
    write(folder / "b.csv", "body\na\n")
    return Source(path=str(folder / "*.csv")), "causal_lm", "b.csv has no column 'text'; it has body"


def files(name: str, content: bytes | str, told: str) -> Any:
    return lambda folder: (Source(path=write(folder / name, content)), "causal_lm", told)


FILES: dict[str, Callable[[Path], tuple[Source, str, str]]] = {
    "an empty CSV": files("a.csv", "", "a.csv is empty: it has no header of columns"),
    "JSON without a good line": files("a.jsonl", "{no\n", "a.jsonl has no rows: line 1 holds no JSON: "),
    "JSON of one number": files("a.json", "7", "a.json has no rows: line 1 holds no object of columns"),
    "no tar": files("a.tar", "x" * 1024, "a.tar cannot be read as a tar file"),
    "no Parquet": files("a.parquet", "x", "a.parquet cannot be read as Parquet"),
    "no Arrow": files("a.arrow", "xxxxxxxxxxxx", "a.arrow cannot be read as Arrow"),
    "no gzip": files("a.jsonl.gz", "xxxx", "a.jsonl.gz cannot be read"),
    "an unknown suffix": files("a.pkl", "x", "files end in .parquet, .jsonl"),
    "other columns": no_columns,
    "labels that are lists": no_labels,
    "URLs for pictures": urls,
    "files of other columns": files_of_other_columns,
}


@pytest.mark.parametrize("name", FILES)
def test_unreadable_files_say_what_is_wrong(tmp_path: Path, name: str) -> None:
    source, objective, told = FILES[name](tmp_path)
    with pytest.raises(DataError) as caught:
        reader_of(source, objective, "skip").read(10)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recordings_with_samples_that_are_no_numbers_or_none_are_unusable(tmp_path: Path) -> None:
    for samples, told in (
        (np.array([0.0, np.nan], np.float32), "samples that are no numbers"),
        (np.array([0.0, np.inf], np.float32), "samples that are no numbers"),
        (np.zeros(0, np.float32), "recording without samples"),
    ):
        soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
        with pytest.raises(UnusableRowError, match=told):
            read_audio(str(tmp_path / "a.wav"))
    with pytest.raises(UnusableRowError, match="cannot be read"):
        read_audio(struct.pack("<4s", b"RIFF"))


def test_broken_lines_of_an_index_are_told_with_their_line_in_any_order(tmp_path: Path) -> None:
    lines = ["", *(json.dumps({"text": f"t{n}"}) if n % 10 else "{broken}" for n in range(40)), ""]
    path = write(tmp_path / "a.jsonl", "\n\n".join(lines))
    reader = reader_of(Source(path=path), "causal_lm", "skip")
    reserved = reader.reserve(40)
    reader.take(reserved, [30, 20, 0, 39])
    assert sorted(named.partition(": no JSON")[0] for named in reader.left_out.named) == [
        "a.jsonl, row 1: line 3",
        "a.jsonl, row 21: line 43",
        "a.jsonl, row 31: line 63",
    ]


def test_more_unusable_rows_than_the_limit_end_the_run(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"t{n}"}) if n % 4 else "{broken}" for n in range(100)]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    opened = open_for(objective_spec("causal_lm"), Source(path=path), training=True)
    for limit in (0.3, 0.2):
        reader = ShareReader(share_of(opened, 0, 1), Retry(), "skip", limit)
        reader.seek(START)
        if limit == 0.3:
            assert len(reader.read(100)) == 75
            continue
        told = r"10 of 37 rows cannot be used, more than data\.error_limit 0\.2 allows: a\.jsonl, row 1: line 1: no"
        with pytest.raises(DataError, match=told):
            reader.read(100)


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "*.csv"])
def test_an_address_without_its_package_names_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where it is not installed; fsspec keeps the class of a package that another test has imported.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)
    with pytest.raises(DataError, match=r"[Pp]lease install gcsfs to access Google Storage \(pip install it"):
        reader_of(Source(path=f"gs://bucket/{name}"), "causal_lm", "skip")
