"""Sources: formats, hold-out, and what is said when something is not there."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source, source_name
from shardyard.data.stream.reader import START, ShareReader, share_of
from shardyard.errors import DataError
from shardyard.objectives.spec import Kind
from shardyard.recipe.schema import Source
from support.data_cases import documents, write_jsonl

TEXTS = ["first\nof two lines", "zweite, größer", "third"]


def read(source: Source, *, training: bool = True) -> list[str]:
    reader = ShareReader(share_of(open_source(source, training=training), 0, 1), Retry())
    reader.seek(START)
    texts = reader.read(10**6)
    reader.close()
    return texts


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(TEXTS)])


WRITERS: dict[str, Callable[[Path], object]] = {
    ".jsonl": lambda path: path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS)),
    ".json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS])),
    ".csv": write_csv,
    ".parquet": lambda path: pq.write_table(pa.table({"text": TEXTS}), path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path)
    assert read(Source(path=str(path))) == TEXTS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_compressed_formats(tmp_path: Path, suffix: str) -> None:
    plain = tmp_path / f"data{suffix}"
    WRITERS[suffix](plain)
    path = tmp_path / f"packed{suffix}.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    assert read(Source(path=str(path))) == TEXTS


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\nfour\n"))
    assert read(Source(path=str(tmp_path / "a.txt"))) == ["one\n\ntwo\n"]
    assert read(Source(path=str(tmp_path / "b.txt.gz"))) == ["three\nfour\n"]
    assert read(Source(path=str(tmp_path))) == ["one\n\ntwo\n", "three\nfour\n"]


def test_globs_folders_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = write_jsonl(tmp_path / "set", [documents(3), documents(3, first=3)])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in (pattern, str(tmp_path / "set"), "set/*.jsonl", "set", "~/set/part-*.jsonl"):
        assert read(Source(path=path)) == documents(6)


def test_splits_of_a_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [documents(3)], "train")
    write_jsonl(tmp_path, [documents(2, "v")], "validation")
    write_jsonl(tmp_path, [documents(2, "t")], "test")
    source = Source(path=str(tmp_path))
    assert read(source) == documents(3)
    assert read(source, training=False) == documents(2, "v")
    assert read(source.model_copy(update={"split": "test"})) == documents(2, "t")
    with pytest.raises(DataError, match=r"nosuch.*train.*test"):
        read(source.model_copy(update={"split": "nosuch"}))


def test_another_column_and_empty_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"body": body, "n": 1}) + "\n" for body in ["x", "", None, "y"]))
    reader = ShareReader(
        share_of(open_source(Source(path=str(path), text_column="body"), training=True), 0, 1), Retry()
    )
    reader.seek(START)
    assert reader.read(10) == ["x", "y"]
    assert reader.num_skipped == 2


PAIR: dict[str, Kind] = {"source": "text", "target": "text"}
PAIR_COLUMNS = {"source": "pair.en", "target": "pair.de"}


def write_pairs(folder: Path, schema: pa.Schema | None = None) -> Path:
    rows = {"pair": [{"en": "one", "de": "eins"}, {"en": "two", "de": "zwei"}], "pair.note": ["a", "b"]}
    pq.write_table(pa.table(rows, schema=schema), folder / "pairs.parquet")
    return folder / "pairs.parquet"


def read_pairs(source: Source) -> list[Any]:
    reader = ShareReader(share_of(open_source(source, training=True, roles=PAIR), 0, 1), Retry())
    reader.seek(START)
    rows: list[Any] = reader.read(10**6)
    reader.close()
    return rows


def test_a_field_within_a_column(tmp_path: Path) -> None:
    path = str(write_pairs(tmp_path))
    expected = [{"source": "one", "target": "eins"}, {"source": "two", "target": "zwei"}]
    assert read_pairs(Source(path=path, columns=PAIR_COLUMNS)) == expected
    # A column whose own name has a point is that column.
    rows = read_pairs(Source(path=path, columns=PAIR_COLUMNS | {"target": "pair.note"}))
    assert [row["target"] for row in rows] == ["a", "b"]


def test_translations_as_the_hub_has_them(tmp_path: Path) -> None:
    """`wmt/wmt14` has the feature Translation, which is a struct of languages."""
    features = datasets.Features({"pair": datasets.Translation(["en", "de"]), "pair.note": datasets.Value("string")})
    path = str(write_pairs(tmp_path, features.arrow_schema))
    features = datasets.load_dataset("parquet", data_files=path, split="train", streaming=True).features
    assert isinstance(features["pair"], datasets.Translation)
    assert [row["source"] for row in read_pairs(Source(path=path, columns=PAIR_COLUMNS))] == ["one", "two"]


@pytest.mark.parametrize("column", ["pair.fr", "pair.en.more", "other.en"])
def test_a_field_that_is_not_there(tmp_path: Path, column: str) -> None:
    source = Source(path=str(write_pairs(tmp_path)), columns=PAIR_COLUMNS | {"target": column})
    with pytest.raises(
        DataError, match=rf"has no column {column!r}; it has pair, pair.note. Set columns.target to one"
    ):
        read_pairs(source)


def test_holdout_divides_the_documents_by_their_text(tmp_path: Path) -> None:
    texts = documents(2000)
    source = Source(path=write_jsonl(tmp_path, [texts[:1000], texts[1000:]]), holdout=0.1)
    train, held = read(source), read(source, training=False)
    assert set(train) | set(held) == set(texts)
    assert not set(train) & set(held)
    # 200 expected; four standard deviations are 54.
    assert len(held) == pytest.approx(200, abs=54)
    reordered = Source(path=write_jsonl(tmp_path / "other", [texts[::-1]]), holdout=0.1)
    assert set(read(reordered, training=False)) == set(held)


def test_fingerprints_say_which_files_were_read(tmp_path: Path) -> None:
    source = Source(path=write_jsonl(tmp_path, [documents(3)]))
    before = open_source(source, training=True).fingerprint
    assert before["num_files"] == 1
    assert before == open_source(source, training=True).fingerprint
    write_jsonl(tmp_path, [documents(4)])
    assert before != open_source(source, training=True).fingerprint


def invalid(tmp_path: Path) -> dict[str, tuple[Source, str]]:
    path = write_jsonl(tmp_path, [documents(3)])
    (tmp_path / "empty.jsonl").write_text("")
    nested = str(tmp_path / "nested.jsonl")
    Path(nested).write_text('{"text": "a", "n": {"m": 1}}\n')
    (tmp_path / "broken.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "nothing").mkdir()
    mixed = tmp_path / "mixed"
    write_jsonl(mixed, [documents(3)])
    (mixed / "x.csv").write_text("text\nx\n")
    return {
        "file": (Source(path=str(tmp_path / "no.jsonl")), r"no\.jsonl: there is no such file"),
        "glob": (Source(path=str(tmp_path / "*.csv")), r"\*\.csv: there is no such file"),
        "folder": (Source(path=str(tmp_path / "gone")), "gone: there is no such file or folder"),
        "column": (Source(path=path, text_column="body"), "no column 'body'; it has text, n"),
        "type": (Source(path=nested, text_column="n"), "'n' holds nested values, not text; columns of text: text"),
        "empty": (Source(path=str(tmp_path / "empty.jsonl")), r"empty\.jsonl"),
        "broken": (Source(path=str(tmp_path / "broken.parquet")), r"broken\.parquet"),
        "split": (Source(path=path, split="test"), "files have no splits"),
        "no files": (Source(path=str(tmp_path / "nothing")), "holds no files"),
        "mixed": (Source(path=str(mixed)), "mixes files of several kinds"),
        "suffix": (Source(path="https://example.invalid/data.rar"), "files end in"),
        "corpus": (Source(source="python-poems"), "no embedded corpus 'python-poems'; there are python-docs"),
        "neither": (Source(), "needs `source`"),
        "not an id": (Source(path="what is this"), "neither a local file or folder nor a hub id"),
    }


@pytest.mark.parametrize(
    "case",
    ["file", "glob", "folder", "column", "type", "empty", "broken", "split", "no files", "mixed", "suffix", "corpus",
     "neither", "not an id"],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]) -> None:
    source, message = invalid(tmp_path)[case]
    with pytest.raises(DataError, match=message) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    assert "".join(capfd.readouterr()) == "", "nothing is printed beside the error"


def test_columns_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text('{"words": ["a", "b"], "classes": [0, 1], "scores": [0.5], "text": "a b"}\n')
    roles: dict[str, Kind] = {"tokens": "texts", "tags": "tags"}
    for tags in ("classes", "words"):
        open_source(Source(path=str(path), columns={"tokens": "words", "tags": tags}), training=True, roles=roles)
    for tokens, tags, message in (
        ("classes", "classes", "'classes' holds nested values, not lists of texts; columns of lists of texts: words."),
        ("words", "scores", "'scores' holds nested values, not lists of whole numbers or names; columns of lists of"),
        ("words", "text", "'text' holds string, not lists of whole numbers or names"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            open_source(Source(path=str(path), columns={"tokens": tokens, "tags": tags}), training=True, roles=roles)


@pytest.mark.parametrize(
    ("answers", "fits"),
    [
        ('{"text": ["a"], "answer_start": [0]}', True),
        ('[{"text": "a", "answer_start": 0}]', True),
        ('["a"]', False),
        ('{"text": ["a"]}', False),
    ],
)
def test_columns_of_answers(tmp_path: Path, answers: str, fits: bool) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"answers": {answers}}}\n')
    roles: dict[str, Kind] = {"answers": "answers"}
    if fits:
        open_source(Source(path=str(path)), training=True, roles=roles)
        return
    with pytest.raises(DataError, match=re.escape("holds nested values, not answers (text and answer_start)")):
        open_source(Source(path=str(path)), training=True, roles=roles)


def test_an_unreachable_hub_points_to_local_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OfflineModeIsEnabled("no network")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    with pytest.raises(DataError, match=r"some/set: the hub cannot be reached.*HF_HUB_OFFLINE.*source: python-docs"):
        open_source(Source(path="some/set"), training=True)


def test_local_data_asks_nothing_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: asked.append(given) or [])
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    pattern = write_jsonl(tmp_path, [documents(3)])
    assert read(Source(path=pattern)) == read(Source(path=str(tmp_path))) == documents(3)
    assert asked == []


def test_names() -> None:
    assert source_name(Source(source="python-docs")) == "python-docs"
    assert source_name(Source(path="org/set", config="en")) == "org/set:en"
    assert os.sep not in source_name(Source(path="set"))
