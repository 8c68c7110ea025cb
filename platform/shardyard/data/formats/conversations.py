"""Conversations, one or several per row, with targets only on the answers.

Packing: Krell et al. 2021 (Efficient Sequence Packing without Cross-contamination).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.data.chat import ChatEncoder, Encoded, add_chat_template
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.packed_examples import PackedExamples
from shardyard.data.stream.packing import IGNORED
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.stream.shuffle import Windows
from shardyard.data.turns import check_turns, repairs
from shardyard.errors import UnusableRowError
from shardyard.recipe.isolation import isolation_of, packs_best_fit


class ConversationRows(ExampleRows):
    """`input_ids`, `attention_mask`, `labels` [T] of a conversation; labels are shifted, -100 outside answers.

    `target_weights` float32 [T] are those of the labels, in batches in which one of them is not 1.
    """

    drops = True

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer, chat = inputs.text_tokenizer, inputs.chat
        add_chat_template(tokenizer, chat.template, chat.template_kwargs)
        self._encoder = ChatEncoder(tokenizer, chat.loss_on)
        self._length = inputs.sequence_length
        self._fill = padding(tokenizer)

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of the last answer, see `rows_of`."""
        rows = self.rows_of(piece, generator)
        if not rows:
            raise UnusableRowError("no answer of the conversation is trained")
        return rows[-1]

    def rows_of(self, piece: Any, generator: np.random.Generator) -> Sequence[Row]:
        """The rows of an example {messages: [{role, content, …}, …]}, perhaps with `tools` and `documents`.

        There are several only if the chat template shows earlier answers otherwise once the conversation goes on.

        Raises:
            UnusableRowError: a turn is empty, or the template refuses the conversation.
        """
        check_turns(piece["messages"])
        made = [answer_row(encoded, self._length) for encoded in self._encoder.rows(piece)]
        self.num_cut += sum(cut for _, cut in made)
        return [row for row, _ in made]

    def learns(self, row: Row) -> bool:
        """Whether a token of an answer fits into the row."""
        return has_target(row["labels"])

    def repairs(self, piece: Any) -> Iterator[Any]:
        """Conversations with repaired turns."""
        return ({**piece, "messages": turns} for turns in repairs(piece["messages"]))

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, T] by name, padded to the longest row."""
        return collate(weighted_alike(rows), self._fill)


def answer_row(encoded: Encoded, length: int) -> tuple[Row, int]:
    """A row of at most `length` tokens, and how many tokens did not fit."""
    ids = np.array(encoded.ids[: length + 1], dtype=np.int64)
    weights = np.array(encoded.weights[: length + 1], dtype=np.float32)
    row = {
        "input_ids": ids[:-1],
        "attention_mask": np.ones(len(ids) - 1, dtype=np.int64),
        "labels": np.where(weights[1:] > 0, ids[1:], IGNORED),
    }
    return weighted(row, weights[1:]), max(0, len(encoded.ids) - length - 1)


def weighted(row: Row, weights: npt.NDArray[np.float32]) -> Row:
    """The row, with the weights of its labels if a target has another than 1."""
    differs = (weights[row["labels"] != IGNORED] != 1).any()
    return {**row, "target_weights": weights} if differs else row


def weighted_alike(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, all of them with `target_weights` if one has them."""
    if not any("target_weights" in row for row in rows):
        return rows
    return [{"target_weights": np.ones(row["labels"].shape, np.float32), **row} for row in rows]


def has_target(labels: npt.NDArray[Any]) -> bool:
    """Whether `labels` of any shape have a target."""
    return bool((labels != IGNORED).any())


def padding(tokenizer: Any) -> dict[str, float]:
    """Padding values; padding is masked and has no target, so any token works."""
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {"input_ids": token or 0, "attention_mask": 0, "labels": IGNORED, "target_weights": 0}


class PackedConversations(ConversationRows):
    """`input_ids`, `labels`, `position_ids` [T] of whole conversations; positions restart with each of them.

    There is no attention mask: padding follows at position 0, each token as a document of its own.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._fill = {**self._fill, "position_ids": 0}

    def stream(self, windows: Windows) -> PackedExamples:
        """Rows of one (stream, source)."""
        return PackedExamples(windows, self, self, length=self._length)

    def length(self, row: Row) -> int:
        """Tokens of a row."""
        return len(row["input_ids"])

    def join(self, rows: Sequence[Row]) -> Row:
        """One row of several conversations."""
        alike = weighted_alike(rows)
        names = ("input_ids", "labels", *(["target_weights"] if "target_weights" in alike[0] else []))
        return {
            **{name: np.concatenate([row[name] for row in alike]) for name in names},
            "position_ids": np.concatenate([np.arange(self.length(row)) for row in rows]),
        }


def make(inputs: FormatInputs) -> ConversationRows:
    """Create the format from its inputs: packed if the recipe says so and conversations can be kept apart."""
    packed = packs_best_fit(inputs.data) and isolation_of(inputs.data) != "rows"
    return PackedConversations(inputs) if packed else ConversationRows(inputs)
