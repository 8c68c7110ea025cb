"""Pairs of answers to the same prompt: chosen and rejected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from shardyard.data.chat import ChatEncoder, add_chat_template
from shardyard.data.formats.conversations import answer_row, has_target, padding
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.turns import check_turns, repairs
from shardyard.errors import UnusableRowError

ANSWERS = ("chosen", "rejected")


class PreferenceRows(ExampleRows):
    """`chosen_…` and `rejected_…`: `input_ids`, `attention_mask`, `labels` [S, T] of the prompt with each side.

    A side is what follows the prompt, and its targets are the answers of the assistant in it. It has several sequences
    (S > 1) only if the chat template shows earlier answers otherwise once the conversation goes on: each answer is then
    read as the model writes it, and their log-probabilities are added.
    """

    drops = True

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer, chat = inputs.text_tokenizer, inputs.chat
        add_chat_template(tokenizer, chat.template, chat.template_kwargs)
        self._encoder = ChatEncoder(tokenizer)
        self._length = inputs.sequence_length
        self._padding = padding(tokenizer)
        self._fill = {f"{answer}_{name}": value for answer in ANSWERS for name, value in self._padding.items()}

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """An example {prompt, chosen, rejected}: texts, or lists of messages.

        Raises:
            UnusableRowError: a turn is empty, or the template refuses a conversation.
        """
        row: Row = {}
        for answer in ANSWERS:
            messages = [*_turns(piece["prompt"], "user"), *_turns(piece[answer], "assistant")]
            check_turns(messages)
            encoded = self._encoder.rows({**piece, "messages": messages})
            if not encoded:
                raise UnusableRowError(f"{answer} has no answer of the assistant that is trained")
            made = [answer_row(one, self._length) for one in encoded]
            if any("target_weights" in sequence for sequence, _ in made):
                raise UnusableRowError("the answers of a pair have no weight but 0 and 1: they are compared as a whole")
            sequences = collate([sequence for sequence, _ in made], self._padding)
            row |= {f"{answer}_{name}": tensor.numpy() for name, tensor in sequences.items()}
            self.num_cut += sum(cut for _, cut in made)
        same = (np.array_equal(row[f"chosen_{name}"], row[f"rejected_{name}"]) for name in ("input_ids", "labels"))
        if self.learns(row) and all(same):
            raise UnusableRowError("chosen and rejected are the same within data.sequence_length")
        return row

    def learns(self, row: Row) -> bool:
        """Whether a token of each answer fits into the row: a pair without one has nothing to compare."""
        return all(has_target(row[f"{answer}_labels"]) for answer in ANSWERS)

    def repairs(self, piece: Any) -> Iterator[Any]:
        """Pairs whose prompt is repaired, each with the beginning of the answers."""
        prompt = _turns(piece["prompt"], "user")
        return ({**piece, "prompt": turns} for turns in repairs(prompt))

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, T] by name; chosen and rejected answers are each padded to their own longest row.

        With several sequences for a side, their number replaces B, and `…_pairs` [number, B] says whose each is.
        """
        batch: Tensors = {}
        for answer in ANSWERS:
            names = [f"{answer}_{name}" for name in ("input_ids", "attention_mask", "labels")]
            split = [{name: row[name][at] for name in names} for row in rows for at in range(len(row[names[0]]))]
            batch |= collate(split, self._fill)
            if len(split) > len(rows):
                sizes = torch.tensor([len(row[names[0]]) for row in rows])
                batch[f"{answer}_pairs"] = torch.eye(len(rows), dtype=torch.bool).repeat_interleave(sizes, 0)
        return batch


def _turns(value: Any, role: str) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def make(inputs: FormatInputs) -> PreferenceRows:
    """Create the format from its inputs."""
    return PreferenceRows(inputs)
