"""Objectives by the names that recipes use. A new one is a folder next to this file and a name below."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.objectives.spec import ObjectiveSpec
from shardyard.suggest import suggestion

# Each is a folder with a `spec.py`, in the order in which they are listed for users.
OBJECTIVES = (
    "causal_lm",
    "masked_lm",
    "bert_pretraining",
    "seq2seq",
    "image_classification",
    "masked_image",
    "contrastive",
    "audio_contrastive",
    "vision_language",
    "speech_to_text",
    "speech_ctc",
    "audio_classification",
    "text_classification",
    "multi_label_classification",
    "text_regression",
    "token_classification",
    "question_answering",
    "multiple_choice",
    "embedding",
    "reranker",
    "instruction",
    "preference",
    "distillation",
)


@cache
def objective_spec(name: str) -> ObjectiveSpec:
    """The specification of an objective: a built-in one, one of an installed package, or `module:name`.

    Raises:
        UsageError: no such objective exists, its code cannot be imported, or its name is taken.
    """
    if name in OBJECTIVES:
        spec: ObjectiveSpec = importlib.import_module(f"shardyard.objectives.{name}.spec").SPEC
        return spec
    reference = plugins.find("objectives", name, OBJECTIVES)
    if reference is None:
        known = (*OBJECTIVES, *plugins.installed("objectives"))
        raise UsageError(f"there is no objective {name!r}; {suggestion(name, known)}")
    return _from_outside(name, reference)


def specs() -> Iterator[ObjectiveSpec]:
    """The specifications of all built-in objectives."""
    return map(objective_spec, OBJECTIVES)


def _from_outside(name: str, reference: str) -> ObjectiveSpec:
    found = plugins.load(reference)
    if not isinstance(found, ObjectiveSpec):
        raise UsageError(f"{reference} is no ObjectiveSpec but {type(found).__name__}; see docs/extending.md.")
    if found.name in OBJECTIVES:
        raise UsageError(
            f"{reference} calls itself {found.name!r}, which is a name of Shardyard's own; give it another name."
        )
    if not plugins.is_reference(name) and found.name != name:
        raise UsageError(f"the entry point {name!r} leads to an objective called {found.name!r}; give both one name.")
    # `:make` refers to the module of the specification.
    module = reference.rpartition(":")[0]
    inside = {
        key: module + value
        for key in ("loss", "rows", "row_shape")
        if (value := getattr(found, key)) is not None and value.startswith(":")
    }
    return replace(found, **inside)
