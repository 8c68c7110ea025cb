"""How the examples of each objective become rows. A new kind of row is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable

from shardyard.data.formats.context import Context
from shardyard.data.formats.packed import PackedRows
from shardyard.data.rows import Rows

__all__ = ["FORMATS", "Context", "make_rows"]

FORMATS: dict[str, Callable[[Context], Rows]] = {
    "causal_lm": PackedRows,
    "distillation": PackedRows,
}


def make_rows(objective: str, context: Context) -> Rows:
    """The format of an objective.

    Raises:
        DataError: the tokenizer lacks a token that the format needs.
    """
    return FORMATS[objective](context)
