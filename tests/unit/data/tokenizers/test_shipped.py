"""The tokenizers that are shipped: whole, small, as their specs say, and known to recipes by their size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.data.tokenizers.folder import trained_folder, verify_folder
from shardyard.data.tokenizers.spec import read_spec
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.recipe.catalog.shipped import find_tokenizer_spec, tokenizer_specs
from shardyard.recipe.rules.model import shipped_vocabulary

LARGEST_BYTES = 300_000
TRAINED = ["bpe-docs-4k", "unigram-docs-4k", "unigram-en-es-8k", "wordpiece-docs-4k"]
TEXT = "The pathlib module offers classes representing filesystem paths with semantics appropriate for them"


def folder_of(name: str) -> Path:
    spec = find_tokenizer_spec(name)
    assert spec is not None
    return trained_folder(spec)


def test_every_spec_is_known_here_and_every_folder_has_a_spec() -> None:
    names = tokenizer_specs()
    assert set(names) >= {*TRAINED, "bytes"}
    root = folder_of("bytes").parent
    assert {path.name for path in root.iterdir() if path.is_dir()} <= set(names)


@pytest.mark.parametrize("name", tokenizer_specs())
def test_a_shipped_tokenizer_loads_and_has_the_size_that_recipes_are_told(name: str) -> None:
    tokenizer = load_tokenizer(name)
    assert vocabulary_size(tokenizer) == shipped_vocabulary(name)
    text = tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True)
    assert text.lower() == TEXT.lower()


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_folder_is_whole_small_and_good(name: str) -> None:
    folder = folder_of(name)
    report = verify_folder(folder)
    spec = find_tokenizer_spec(name)
    assert spec is not None
    assert report["spec"] == read_spec(spec).definition()
    assert report["vocabulary"]["size"] == report["vocabulary"]["asked"]
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST_BYTES
    assert report["overall"]["bytes_per_token"] > 3
    assert report["overall"]["unknown_share"] < 0.001


def test_wordpiece_is_made_for_bert() -> None:
    tokenizer = load_tokenizer("wordpiece-docs-4k")
    assert tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]) == [0, 1, 2, 3, 4]
    assert tokenizer("Résumé", "B").token_type_ids[-2:] == [1, 1]
    assert tokenizer("RÉSUMÉ").input_ids == tokenizer("resume").input_ids


def test_the_bilingual_report_has_both_languages() -> None:
    figures = verify_folder(folder_of("unigram-en-es-8k"))["by_label"]
    assert set(figures) == {"en", "es"}
    assert all(1.0 <= figures[label]["tokens_per_word"] < 1.6 for label in figures)


def test_the_size_of_a_tokenizer_without_a_sound_report_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("kind: bpe\n")
    monkeypatch.setattr("shardyard.recipe.catalog.shipped.share_folder", lambda kind: tmp_path)
    assert shipped_vocabulary("mine") is None
    (tmp_path / "mine").mkdir()
    for content, size in (("{", None), ("[]", None), ('{"vocabulary": {"size": "9"}}', None)):
        (tmp_path / "mine" / "report.json").write_text(content)
        assert shipped_vocabulary("mine") is size
    (tmp_path / "mine" / "report.json").write_text(json.dumps({"vocabulary": {"size": 77}}))
    assert shipped_vocabulary("mine") == 77
