"""Row formats: from examples to rows. A new format needs one file here and its name below."""

from __future__ import annotations

from typing import cast

from shardyard import plugins
from shardyard.data.formats.inputs import FormatInputs as FormatInputs
from shardyard.data.stream.rows import Rows
from shardyard.errors import UsageError
from shardyard.objectives.registry import objective_spec
from shardyard.suggest import suggestion

__all__ = ["FORMATS", "Context", "make_rows"]

# Modules of this package with a function `make(inputs)`.
FORMATS = (
    "packed",
    "masked",
    "sentence_pairs",
    "translation",
    "labelled_images",
    "masked_images",
    "labelled_text",
    "captions",
    "image_answers",
    "speech",
    "conversations",
    "preferences",
)


def make_rows(objective: str, inputs: FormatInputs) -> Rows:
    """The row format of an objective; imports only the module of that format.

    Raises:
        DataError: the tokenizer lacks a token that the format needs.
        UsageError: the format does not exist.
    """
    name = objective_spec(objective).rows
    return cast(Rows, plugins.load(_reference(name))(inputs))


def _reference(name: str) -> str:
    if name in FORMATS:
        return f"shardyard.data.formats.{name}:make"
    found = plugins.find("formats", name, FORMATS)
    if found is None:
        known = (*FORMATS, *plugins.installed("formats"))
        raise UsageError(f"there is no row format {name!r}; {suggestion(name, known)}")
    return found
