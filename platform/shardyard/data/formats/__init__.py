"""How the examples of each objective become rows. A new kind of row is one file here and one line below."""

from __future__ import annotations

import importlib
from typing import cast

from shardyard.data.formats.inputs import Context
from shardyard.data.stream.rows import Rows

__all__ = ["Context", "make_rows"]

# Objective → module of this package with a function `make(context)`; a run imports its own alone.
_MODULES = {
    "causal_lm": "packed",
    "distillation": "packed",
    "masked_lm": "masked",
    "bert_pretraining": "sentence_pairs",
    "seq2seq": "translation",
    "image_classification": "labelled_images",
    "masked_image": "masked_images",
    "text_classification": "labelled_text",
    "contrastive": "captions",
    "vision_language": "picture_answers",
    "speech_to_text": "speech",
    "instruction": "conversations",
    "preference": "preferences",
}


def make_rows(objective: str, context: Context) -> Rows:
    """The format of an objective.

    Raises:
        DataError: the tokenizer lacks a token that the format needs.
    """
    module = importlib.import_module(f"shardyard.data.formats.{_MODULES[objective]}")
    return cast(Rows, module.make(context))
