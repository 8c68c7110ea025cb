"""Rows of queries with several documents.

Legend: K = documents of a row, T = tokens of a document with its query.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.text_lists import TextLists
from shardyard.data.stream.rows import Row
from shardyard.errors import UnusableRowError

_SHOWN = 60


class Ranked(TypedDict):
    """An example: a query, documents, and the relevance of each, 0 or more."""

    query: str
    documents: list[str]
    labels: list[float]


class RankedRows(TextLists):
    """`input_ids`, `attention_mask` and, for a model with segments, `token_type_ids`, int64 [K, T], and `labels`,
    float32 [K]: the relevance of each document, read together with the query. Pairs are cut at the end of the longer
    text.

    Raises:
        DataError: the tokenizer has no padding token, the model has too few positions; from `row`: labels that do not
            fit the documents, or that are no relevance.
    """

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example with `query`, `documents` and `labels`."""
        query, documents, labels = piece["query"], piece["documents"], [float(label) for label in piece["labels"]]
        shown = query if len(query) <= _SHOWN else query[:_SHOWN] + "…"
        valid = all(math.isfinite(label) and label >= 0 for label in labels) and any(labels)
        if len(documents) != len(labels) or not valid:
            raise UnusableRowError(
                "a query needs a relevance for each document, 0 or more, of which at least one is more than 0",
                f"{shown!r} has {len(documents)} documents and the labels {labels}",
            )
        return self.listed([[query, document] for document in documents]) | {"labels": np.array(labels, np.float32)}


def make(inputs: FormatInputs) -> RankedRows:
    """Create the format from its inputs."""
    return RankedRows(inputs)
