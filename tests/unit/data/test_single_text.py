"""A single text file: divided into pieces, so that streams share it and a part of it is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.data.formats import FormatInputs
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source
from shardyard.data.stream.held_out import held_out_rows
from shardyard.data.stream.reader import START, ShareReader, share_of
from shardyard.data.tables.texts import documents_of
from shardyard.recipe.earlier import complete
from shardyard.recipe.schema import Source
from support.data_cases import bytes_tokenizer, data, global_rows, loader

TEXT = "".join(f"Sentence {n} of a book, with words {n * 37 % 101}.{chr(10) * (2 - n % 2)}" for n in range(900))


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return str(path)


def read(path: str, **options: Any) -> list[Any]:
    training = options.pop("training", True)
    found = ShareReader(share_of(open_source(Source(path=path, **options), training=training), 0, 1), Retry())
    found.seek(START)
    return list(found.read(10**6))


@pytest.mark.parametrize("holdout", [0.0, 0.1])
def test_it_trains_on_more_streams_than_it_is_files(book: str, holdout: float) -> None:
    recipe = data([Source(path=book, holdout=holdout)], sequence_length=64)
    options: dict[str, Any] = {"streams": 12, "global_batch": 12}
    rows = global_rows(recipe, 3, 1, **options)
    assert len({str(row[0]) for row in rows[0]}) == 12
    assert global_rows(recipe, 3, 2, **options) == rows
    with loader(recipe, **options) as opened:
        (note,) = opened.notes
    assert "book.txt is a single text file: it is divided into pieces of about 200 characters" in note


def test_a_part_of_it_is_held_out(book: str) -> None:
    trained, held = read(book, holdout=0.1), read(book, holdout=0.1, training=False)
    assert 100 < len(trained) < 256
    assert 5 < len(held) < 50
    assert not set(trained) & set(held)
    assert "".join(read(book)) == TEXT
    rows = held_out_rows(FormatInputs(data([Source(path=book, holdout=0.1)]), bytes_tokenizer()), 8, seed=1)
    assert rows.describe() == f"8 rows of {book}"


def test_how_it_is_divided(tmp_path: Path, book: str) -> None:
    assert documents_of(None, [book]) == 200
    assert documents_of("file", [book]) == "file"
    assert documents_of(None, [book, book]) == "file"
    assert documents_of(None, ["https://example.org/book.txt"]) == 2000
    large = tmp_path / "large.txt"
    large.write_bytes(b"x" * 256_000)
    assert documents_of(None, [str(large)]) == 1000
    assert read(book, documents="file") == [TEXT]


def test_runs_that_began_before_read_it_as_one_document() -> None:
    fields: dict[str, Any] = {"data": {"train": [{"path": "book.txt"}, {"path": "b.txt", "documents": "lines"}]}}
    complete(fields)
    assert [source["documents"] for source in fields["data"]["train"]] == ["file", "lines"]
