"""Padding and end tokens of tokenizers that have none."""

from __future__ import annotations

import numpy as np
import pytest

from shardyard.data.formats import FormatInputs
from shardyard.data.formats.labelled_text import LabelledText
from shardyard.data.tokenizers.padding import OWN_TOKEN, with_padding
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.errors import DataError
from shardyard.models.build import architecture_config, special_token_ids
from shardyard.recipe.schema import Data, Model
from support.wordpieces import tiny_wordpiece

DATA = Data.model_validate({"sequence_length": 8, "train": [{"source": "python-docs"}]})


def test_a_classifier_pads_with_the_end_token() -> None:
    tokenizer = with_padding(load_tokenizer("bytes"), "text_classification", "gpt2")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 256
    assert vocabulary_size(tokenizer) == 257


def test_packed_rows_need_no_padding() -> None:
    assert with_padding(load_tokenizer("bytes"), "causal_lm", "gpt2").pad_token_id is None


@pytest.mark.parametrize("family", ["m2m_100", "fsmt", "led", "nllb-moe", "xlm"])
def test_a_family_that_counts_padding_gets_a_token_of_its_own(family: str) -> None:
    tokenizer = with_padding(load_tokenizer("bytes"), "seq2seq", family)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (OWN_TOKEN, 257)
    assert vocabulary_size(tokenizer) == 258


def test_prophetnet_pads_with_the_first_token_alone() -> None:
    with pytest.raises(DataError, match="padding token has id 0"):
        with_padding(load_tokenizer("bytes"), "seq2seq", "prophetnet")
    assert with_padding(tiny_wordpiece(), "causal_lm", "prophetnet").pad_token_id == 0


def test_a_separator_ends_the_texts_of_an_encoder_decoder() -> None:
    tokenizer = with_padding(tiny_wordpiece(), "seq2seq", "prophetnet")
    assert tokenizer.eos_token == tokenizer.sep_token == "[SEP]"
    assert with_padding(tiny_wordpiece(), "masked_lm", "bert").eos_token is None


def _row(tokenizer: object, family: str) -> np.ndarray:
    tokenizer = with_padding(tokenizer, "text_classification", family)
    size = vocabulary_size(tokenizer)  # type: ignore[arg-type]
    config = architecture_config(
        Model(family=family, config={"num_labels": 2}), vocabulary=size, special_tokens=special_token_ids(tokenizer)
    )
    row = LabelledText(FormatInputs(DATA, tokenizer, config)).row(
        {"text": "a step of the model", "label": 1}, np.random.default_rng(0)
    )
    assert len(row["input_ids"]) == len(row["attention_mask"]) <= 8
    assert config.eos_token_id != config.pad_token_id or family == "gpt2"
    return row["input_ids"]


def test_the_classifier_of_an_encoder_decoder_reads_one_end_token() -> None:
    """The separator of a tokenizer of BERT's kind; the end token of one that puts none behind a text."""
    assert np.flatnonzero(_row(tiny_wordpiece(), "bart") == 3).tolist() == [7]
    ids = _row(load_tokenizer("bytes"), "t5")
    assert ids.tolist() == [*b"a step ", 256]


def test_a_decoder_reads_the_text_as_it_is() -> None:
    assert _row(load_tokenizer("bytes"), "gpt2").tolist() == list(b"a step o")
