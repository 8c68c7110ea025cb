"""Rows: document boundaries, positions, separators and what is a target."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers.masking_utils import find_packed_sequence_indices

from shardyard.data.stream.packing import (
    ENCODE_CHARACTERS,
    ENCODE_DOCUMENTS,
    IGNORED,
    DocumentEncoder,
    _ranges,
    encoded_parts,
)
from shardyard.recipe.schema import Source
from support.data_cases import SEPARATOR, batches, bytes_tokenizer, data, documents, two_separators, write_jsonl

BOS, EOS = 256, 257


def test_positions_restart_with_each_document_and_each_row(tmp_path: Path) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [["abc", "de", "f" * 20]]))], sequence_length=8, shuffle_window=1)
    first, second, *_ = (batch["position_ids"][0].tolist() for batch in batches(recipe, 4, streams=1, global_batch=1))
    assert first == [0, 1, 2, 3, 0, 1, 2, 0]  # |abc |de |
    assert second == [0, 1, 2, 3, 4, 5, 6, 7]  # the long document goes on at 0


def test_transformers_sees_the_documents_in_the_positions(tmp_path: Path) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(40)]))], sequence_length=64)
    for batch in batches(recipe, 5, streams=1, global_batch=1):
        segments = find_packed_sequence_indices(batch["position_ids"])
        expected = (batch["input_ids"] == SEPARATOR).cumsum(-1)
        assert segments is not None
        assert torch.equal(segments - segments[:, :1], expected - expected[:, :1])
        assert expected.max() > 1


def test_without_isolation_positions_run_through(tmp_path: Path) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(40)]))], isolate_documents=False)
    for batch in batches(recipe, 3):
        assert torch.equal(batch["position_ids"], torch.arange(16).expand(4, 16))


def test_one_separator_loses_no_target(tmp_path: Path) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(40)]))])
    assert all(int((batch["labels"] == IGNORED).sum()) == 0 for batch in batches(recipe, 10))


@pytest.mark.parametrize("length", [7, 16, 61])
def test_two_separators_ignore_the_target_at_the_end_of_a_document(tmp_path: Path, length: int) -> None:
    texts = documents(40)
    recipe = data([Source(path=write_jsonl(tmp_path, [texts]))], sequence_length=length, shuffle_window=1)
    made = batches(recipe, 30, streams=1, global_batch=1, tokenizer=two_separators())
    inputs = [token for batch in made for token in batch["input_ids"][0].tolist()]
    labels = [token for batch in made for token in batch["labels"][0].tolist()]
    expected = [token for text in texts for token in (BOS, *text.encode(), EOS)]
    assert (expected * 3)[: len(inputs)] == inputs
    for (token, following), label in zip(pairwise(inputs), labels, strict=False):
        assert label == (IGNORED if token == EOS else following)
    positions = [position for batch in made for position in batch["position_ids"][0].tolist()]
    assert all(position == 0 for position, token in zip(positions, inputs, strict=True) if token == BOS)


def test_a_separator_spelled_in_a_document_stays_text(tmp_path: Path) -> None:
    text = "one <|endoftext|> two </s>"
    for tokenizer in (bytes_tokenizer(), two_separators()):
        encoded = DocumentEncoder(tokenizer).encode([text])[0].tolist()
        assert bytes(token for token in encoded if token < 256).decode() == text
        assert sum(token >= 256 for token in encoded) == (1 if tokenizer.eos_token == tokenizer.bos_token else 2)
    assert bytes_tokenizer()(text).input_ids.count(SEPARATOR) == 1, "the tokenizer of the caller is left as it was"


def test_cut_and_padding_of_a_tokenizer_do_not_reach_the_rows() -> None:
    tokenizer = two_separators()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=100)
    assert [len(tokens) for tokens in DocumentEncoder(tokenizer).encode(["abcdefgh", "x"])] == [10, 3]


@pytest.mark.parametrize("skip", [0, 1, ENCODE_DOCUMENTS, 99])
def test_batches_of_the_tokenizer_cover_each_document_once(skip: int) -> None:
    texts = list(enumerate(["x"] * 50 + ["y" * ENCODE_CHARACTERS] * 3 + ["z"] * 46))
    ranges = list(_ranges(len(texts), skip))
    assert [n for first, last in ranges for n in range(first, last)] == list(range(skip, len(texts)))
    assert all(last - first <= ENCODE_DOCUMENTS for first, last in ranges)
    parts = [part for first, last in ranges for part in encoded_parts(texts[first:last])]
    assert [number for part in parts for number, _ in part] == list(range(skip, len(texts)))
    assert all(sum(len(text) for _, text in part) <= ENCODE_CHARACTERS or len(part) == 1 for part in parts)
