"""Rows of texts are what the exported tokenizer makes of them, for every objective with a head over texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, BertConfig

from shardyard.data.exported import exported_tokenizer
from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.tokenizers.padding import with_padding
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.recipe.schema import Data, Source
from support.tokenizers import own
from support.wordpieces import tiny_wordpiece

TEXT, PAIR = "the model learns", "a b"
TOKENIZERS = {
    "wordpiece": tiny_wordpiece,
    "bart": own.bart,
    "bpe": lambda: load_tokenizer("bpe-docs-4k"),
    "unigram": lambda: load_tokenizer("unigram-docs-4k"),
}
# Objective → an example, and the texts or lists of texts that the tokenizer is called with.
EXAMPLES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "text_classification": ({"text": TEXT, "text_pair": PAIR, "label": 0}, [TEXT, PAIR]),
    "multi_label_classification": ({"text": TEXT, "text_pair": PAIR, "labels": [0]}, [TEXT, PAIR]),
    "text_regression": ({"text": TEXT, "text_pair": PAIR, "label": 0.5}, [TEXT, PAIR]),
    # Words are read as the text that they are, spaces included.
    "token_classification": ({"tokens": TEXT.split(), "tags": [0, 1, 0]}, [TEXT]),
    "multiple_choice": ({"question": TEXT, "choices": [PAIR, "c"], "label": 0}, [[TEXT] * 2, [PAIR, "c"]]),
    "reranker": ({"query": TEXT, "documents": [PAIR, "c"], "labels": [1, 0]}, [[TEXT] * 2, [PAIR, "c"]]),
    "embedding": ({"query": TEXT, "positive": PAIR}, [TEXT]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("objective", EXAMPLES)
def test_rows_are_what_the_exported_tokenizer_makes(tmp_path: Path, objective: str, name: str) -> None:
    """With segments, which a tokenizer that knows of none has to say for a model that does."""
    example, texts = EXAMPLES[objective]
    tokenizer = with_padding(TOKENIZERS[name](), objective, "bert")
    config = BertConfig(num_labels=2, vocab_size=len(tokenizer))
    rows: Any = make_rows(
        objective, FormatInputs(Data(sequence_length=64, train=[Source(path="x")]), tokenizer, config)
    )
    row = rows.row(example, np.random.default_rng(0))
    exported_tokenizer(tokenizer, objective, segments=True).save_pretrained(tmp_path)
    made = AutoTokenizer.from_pretrained(tmp_path)(*texts, padding=isinstance(texts[0], list))
    for part in ("input_ids", "attention_mask", "token_type_ids"):
        (ours,) = (values for key, values in row.items() if key.endswith(part) and not key.startswith("positive"))
        assert ours.tolist() == made[part], part
