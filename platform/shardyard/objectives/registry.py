"""Objectives by the names that recipes call them. A new one is one file beside this and one line below."""

from __future__ import annotations

import importlib
from typing import cast

from shardyard.objectives.base import Objective
from shardyard.objectives.parts import Parts

# Name → module of this package with a function `make(parts)`; a run imports its own alone.
_MODULES = {
    "causal_lm": "causal",
    "masked_lm": "masked",
    "bert_pretraining": "bert_pretraining",
    "seq2seq": "seq2seq",
    "image_classification": "classification",
    "text_classification": "classification",
    "masked_image": "masked_image",
    "contrastive": "contrastive",
    "vision_language": "answers",
    "speech_to_text": "speech_to_text",
    "instruction": "answers",
    "preference": "preference",
    "distillation": "distilled",
}


def make_objective(name: str, parts: Parts) -> Objective:
    """The objective that a recipe names."""
    module = importlib.import_module(f"shardyard.objectives.{_MODULES[name]}")
    return cast(Objective, module.make(parts))
