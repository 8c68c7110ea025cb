"""Rows of pairs of texts: what the encoder reads, what the decoder reads and predicts, what is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.formats.translation import Translation
from shardyard.errors import DataError
from shardyard.recipe.schema import Source
from support.data_cases import SEPARATOR, bytes_tokenizer, data

START = 7


def context(**options: Any) -> FormatInputs:
    settings = {name: options.pop(name) for name in ("training", "tokenizer", "model") if name in options}
    model = AutoConfig.for_model("marian", decoder_start_token_id=START)
    fields = {"tokenizer": bytes_tokenizer(), "model": model} | settings
    return FormatInputs(data([Source(path="pairs.jsonl")], **options), **fields)


def row(source: str, target: str, **options: Any) -> dict[str, Any]:
    return made(source, target, **options)[0]


def made(source: str, target: str, **options: Any) -> tuple[dict[str, Any], Translation]:
    rows = make_rows("seq2seq", context(**options))
    assert isinstance(rows, Translation)
    return rows.row({"source": source, "target": target}, np.random.default_rng(0)), rows


def test_the_source_ends_and_the_target_is_shifted() -> None:
    found = row("ab", "cde")
    assert found["input_ids"].tolist() == [97, 98, SEPARATOR]
    assert found["attention_mask"].tolist() == [1, 1, 1]
    assert found["decoder_input_ids"].tolist() == [START, 99, 100, 101]
    assert found["labels"].tolist() == [99, 100, 101, SEPARATOR]
    assert found.keys() == {"input_ids", "attention_mask", "decoder_input_ids", "labels"}


def test_the_decoder_reads_what_transformers_makes_of_the_labels() -> None:
    found = row("a", "cdefg")
    config = AutoConfig.for_model("t5", vocab_size=300, num_layers=1, decoder_start_token_id=START, pad_token_id=0)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    assert model._shift_right(torch.from_numpy(found["labels"])[None]).tolist() == [found["decoder_input_ids"].tolist()]


def test_long_texts_are_cut_and_counted() -> None:
    found, rows = made("s" * 12, "t" * 20, sequence_length=6, source_length=9)
    assert found["input_ids"].tolist() == [ord("s")] * 8 + [SEPARATOR]
    assert found["labels"].tolist() == [ord("t")] * 5 + [SEPARATOR]
    assert rows.num_cut == (12 - 8) + (20 - 5)
    found, rows = made("s" * 5, "t" * 5, sequence_length=6)
    assert len(found["input_ids"]) == len(found["labels"]) == 6
    assert rows.num_cut == 0


def test_a_source_is_as_long_as_a_row_unless_said() -> None:
    assert len(row("s" * 99, "t", sequence_length=6)["input_ids"]) == 6


def test_padding_is_masked_and_no_target() -> None:
    rows = make_rows("seq2seq", context(training=False))
    assert isinstance(rows, Translation)
    generator = np.random.default_rng(0)
    pairs = [{"source": "abc", "target": "x"}, {"source": "a", "target": "xyz"}]
    batch = rows.collate([rows.row(pair, generator) for pair in pairs])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[120, SEPARATOR, -100, -100], [120, 121, 122, SEPARATOR]]
    assert batch["input_ids"].shape == batch["decoder_input_ids"].shape == (2, 4)


def test_evaluation_keeps_whole_texts() -> None:
    found = row("ñandú" * 9, "ёж\0" * 9, sequence_length=4, training=False)
    assert found["source_text"].tobytes().decode() == "ñandú" * 9
    assert found["reference"].tobytes().decode() == "ёж " * 9


def test_a_blind_row_has_no_source_but_its_end() -> None:
    found, rows = made("s" * 99, "tt", drop_inputs=True, training=False)
    assert found["input_ids"].tolist() == [SEPARATOR]
    assert found["attention_mask"].tolist() == [1]
    assert found["labels"].tolist() == row("s", "tt")["labels"].tolist()
    assert rows.num_cut == 0


def test_text_that_spells_a_special_token_stays_text() -> None:
    assert row("<|endoftext|>", "a", sequence_length=32)["input_ids"].tolist().count(SEPARATOR) == 1


def test_a_tokenizer_without_an_end_is_refused() -> None:
    backend = bytes_tokenizer().backend_tokenizer
    with pytest.raises(DataError, match="no eos token"):
        make_rows("seq2seq", context(tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend)))


def test_a_model_without_a_start_is_refused() -> None:
    with pytest.raises(DataError, match="decoder_start_token_id"):
        make_rows("seq2seq", context(model=AutoConfig.for_model("t5")))
