"""Tokenizers: the bytes spec, round trips, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from shardyard.data.stream.packing import DocumentEncoder
from shardyard.data.tokenizers.tokenizer import fingerprint, load_tokenizer, vocabulary_size
from shardyard.errors import DataError
from support.data_cases import bytes_tokenizer, two_separators


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_id_of_a_byte_is_the_byte_and_any_text_comes_back(text: str) -> None:
    tokenizer = bytes_tokenizer()
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_byte_is_a_token() -> None:
    tokenizer = bytes_tokenizer()
    assert vocabulary_size(tokenizer) == 257
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 256
    assert sorted(tokenizer.get_vocab().values()) == list(range(257))


def test_a_saved_tokenizer_loads_without_code_of_ours(tmp_path: Path) -> None:
    text = "Hello , ümläut — \U0001f600 don 't\n"
    bytes_tokenizer().save_pretrained(tmp_path)
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        ids = again(text).input_ids
        assert ids == list(text.encode())
        assert again.decode(ids) == text
        assert (again.eos_token_id, again.bos_token_id) == (256, 256)
        assert fingerprint(again) == fingerprint(bytes_tokenizer())


def test_fingerprints_tell_tokenizers_apart() -> None:
    assert fingerprint(bytes_tokenizer()) != fingerprint(two_separators())
    used = load_tokenizer("bytes")
    used("text", split_special_tokens=True, truncation=True, max_length=3)
    assert fingerprint(used) == fingerprint(bytes_tokenizer())


def test_a_spec_file_by_path(tmp_path: Path) -> None:
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        "kind: bytes\ndescription: two\nspecial_tokens: {bos_token: <s>, eos_token: </s>, pad_token: </s>}\n"
    )
    tokenizer = load_tokenizer(str(spec))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 257)
    assert vocabulary_size(tokenizer) == 258


def test_an_invalid_spec_is_explained(tmp_path: Path) -> None:
    spec = tmp_path / "broken.yaml"
    spec.write_text("kind: words\ndescription: x\nspecial_tokens: {}\n")
    with pytest.raises(DataError, match=r"broken.yaml:1: kind: must be one of bytes, bpe"):
        load_tokenizer(str(spec))


def test_missing_tokenizers_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(DataError, match="neither a shipped spec, nor a folder, nor a hub id"):
        load_tokenizer(str(tmp_path / "empty folder"))


def test_a_vocabulary_with_holes_has_embeddings_up_to_its_largest_id(tmp_path: Path) -> None:
    """Ids above the number of tokens would be read behind the end of the embeddings."""
    load_tokenizer("bytes").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    fields = json.loads(path.read_text())
    vocabulary = fields["model"]["vocab"]
    vocabulary[next(token for token, id in vocabulary.items() if id == ord("a"))] = 70_000
    path.write_text(json.dumps(fields))
    tokenizer = load_tokenizer(str(tmp_path))
    assert len(tokenizer) == 257
    assert vocabulary_size(tokenizer) == 70_001
    (document,) = DocumentEncoder(tokenizer).encode(["ab"])
    assert document.tolist() == [256, 70_000, ord("b")]
