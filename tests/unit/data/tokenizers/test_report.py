"""The figures of a tokenizer's report, computed by hand on a tiny corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.data.tokenizers.corpus import is_held_out
from shardyard.data.tokenizers.report import piece_text, tallies
from shardyard.data.tokenizers.spec import Kind
from shardyard.data.tokenizers.tokenizer import vocabulary_size
from shardyard.data.tokenizers.training import train_tokenizer
from shardyard.data.tokenizers.unigram import train_unigram
from support.tokenizer_cases import spec_of, write_documents
from unit.data.tokenizers.test_training import trained


def report_on(tmp_path: Path, kind: Kind, rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    path = write_documents(tmp_path / "rows.jsonl", rows)
    source = {"path": str(path), **values.pop("source", {})}
    return train_tokenizer(spec_of(tmp_path, kind, train=[source], **values), tmp_path / "out")


def test_figures_of_a_corpus_counted_by_hand(tmp_path: Path) -> None:
    # Characters a and b are pieces, "ab" is worth one; c is outside the alphabet, so "cab" is unknown to WordPiece.
    rows = [{"text": "ab ab ab", "l": "x"}, {"text": "ab a é", "l": "y"}, {"text": "cab", "l": "y"}]
    values = {"vocabulary": 100, "alphabet": 2, "held_out": 0.0, "source": {"language_column": "l"}}
    report = report_on(tmp_path, "wordpiece", rows, **values)
    assert report["measured_on"] == "training documents"
    assert report["documents"] == {"training": 3, "held_out": 0}
    # [PAD] [UNK] [CLS] [SEP] [MASK], a, b, ##a, ##b and ab.
    assert report["vocabulary"] == {"size": 10, "asked": 100, "special": 5}
    assert report["by_label"]["x"] == {
        "documents": 1,
        "bytes": 8,
        "words": 3,
        "tokens": 3,
        "bytes_per_token": 2.6667,
        "tokens_per_word": 1.0,
        "unknown_share": 0.0,
    }
    assert report["by_label"]["y"] == {
        "documents": 2,
        "bytes": 10,
        "words": 4,
        "tokens": 4,
        "bytes_per_token": 2.5,
        "tokens_per_word": 1.0,
        "unknown_share": 0.5,
    }
    assert report["overall"]["tokens"] == 7
    assert report["overall"]["unknown_share"] == pytest.approx(2 / 7, abs=1e-4)
    # Of the five pieces, ab occurs 4 times, a once, b and the continuations never.
    assert report["pieces"] == {
        "rare_below": 10,
        "rare_share": 1.0,
        "unused": 3,
        "longest": ["##a", "##b", "ab", "a", "b"],
    }


def test_a_vocabulary_that_the_data_cannot_give_is_said(tmp_path: Path) -> None:
    for kind, size in (("bpe", 259), ("unigram", 6)):
        rows = [{"text": "ab ab"}]
        report = report_on(tmp_path, kind, rows, vocabulary=1000, held_out=0.0)
        assert report["vocabulary"]["asked"] == 1000
        assert report["vocabulary"]["size"] <= size + 3, report["vocabulary"]


def test_held_out_documents_are_measured_and_not_trained_on(tmp_path: Path) -> None:
    rows = [{"text": f"word{n} is here"} for n in range(60)]
    outside = [row["text"] for row in rows if is_held_out(row["text"], 0.25)]
    report = report_on(tmp_path, "unigram", rows, held_out=0.25)
    assert report["documents"] == {"training": 60 - len(outside), "held_out": len(outside)}
    assert report["measured_on"] == "held-out documents"
    assert report["overall"]["bytes"] == sum(len(text) for text in outside)
    assert 5 < len(outside) < 25


def test_byte_level_pieces_are_shown_as_text() -> None:
    tokenizer = trained("bpe")
    assert piece_text(tokenizer, tokenizer.convert_tokens_to_ids("Ġthe")) == " the"
    half = tokenizer("é").input_ids[0]
    assert piece_text(tokenizer, half) == tokenizer.convert_ids_to_tokens(half)
    assert piece_text(tokenizer, 0) == "<|endoftext|>"
    assert vocabulary_size(tokenizer) == 400


def test_text_that_spells_a_special_token_is_text() -> None:
    (tally,) = tallies(trained("bpe"), [("x", "<|endoftext|>")]).values()
    assert tally.tokens > 3


def test_a_report_names_its_data(tmp_path: Path) -> None:
    rows = [{"text": "one two"}, {"text": "three"}, {"text": None}]
    report = report_on(tmp_path, "bpe", rows, held_out=0.0)
    (data,) = report["data"]
    assert (data["documents"], data["empty"], data["bytes"]) == (2, 1, 12)
    changed = report_on(tmp_path, "bpe", [{"text": "one two"}, {"text": "threE"}], held_out=0.0)
    assert changed["data"][0]["sha256"] != data["sha256"]
    assert report["versions"].keys() == {"shardyard", "python", "tokenizers", "transformers", "numpy"}
    assert report["spec"]["vocabulary"] == 400


def test_training_stops_where_nothing_is_left_to_learn() -> None:
    assert dict(train_unigram({"a": 1}, 50, alphabet=["a"])) == {"a": 0.0}
