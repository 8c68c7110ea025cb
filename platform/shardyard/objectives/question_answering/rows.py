"""Rows of questions and contexts, with the span of the answer.

Legend: T = tokens of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from tokenizers import Encoding, Tokenizer

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.masked import padding
from shardyard.data.formats.sentences import ENCODE_TEXTS, check_positions, has_segments
from shardyard.data.formats.target_text import as_bytes
from shardyard.data.sources.sources import Example
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import DataError, UnusableRowError

_PADDING = {"offsets": -1, "context": 0, "references": 0}
_SHOWN = 60


class Answers(TypedDict):
    """The answers to a question: texts, and the index of each one's first character in the context; none if empty."""

    text: list[str]
    answer_start: list[int]


class Question(TypedDict):
    """An example, in the columns of SQuAD. `answers` may also be a list of one mapping each."""

    question: str
    context: str
    answers: Any


@dataclass(frozen=True)
class Window:
    """Tokens `first` … `last` - 1 of the context of the example `index`, for one row."""

    example: Question
    question: Encoding
    context: Encoding
    first: int
    last: int
    index: int


class QuestionRows(ExampleRows):
    """Rows of a question and its context; a long context becomes several rows, windows that overlap.

    A row has `input_ids`, `attention_mask` and, for a model with segments, `token_type_ids`, int64 [≤ T] each, and
    `start_positions`, `end_positions`: the first and last token of the first answer, or the token that stands for no
    answer (`cls`, or the first) where the window does not hold all of it. In evaluation also `context` and
    `references` (the answers, as JSON) in UTF-8, the characters of each token of the context (`offsets` [T, 2], -1
    elsewhere), `questions`, a number that the windows of a question share, and `none_positions`.

    Raises:
        DataError: the tokenizer has no padding token, the model has too few positions; from `row`: an answer that is
            not in its context, or none where the recipe expects one.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer, settings = inputs.text_tokenizer, inputs.answering
        check_positions(inputs.sequence_length, inputs.model)
        self._backend = plain_backend(tokenizer)
        self._cls: int | None = tokenizer.cls_token_id
        self._room = inputs.sequence_length - tokenizer.num_special_tokens_to_add(pair=True)
        stride = settings.stride if settings.stride is not None else inputs.sequence_length // 3
        # At least half of a row is left for the context, and each window brings new tokens.
        self._most_question = self._room // 2
        self._stride = min(stride, self._room - self._most_question - 1)
        if self._stride < 0:
            raise DataError(f"data.sequence_length is {inputs.sequence_length}, too little for question and context.")
        self._unanswerable, self._training = settings.unanswerable, inputs.training
        self._segments = has_segments(inputs.model)
        self._padding = padding(tokenizer) | _PADDING

    def pieces(self, examples: Sequence[Example], generator: np.random.Generator) -> list[Window]:
        """The windows of all contexts, in order."""
        return [window for first in range(0, len(examples), ENCODE_TEXTS) for window in self._windows(
            examples[first : first + ENCODE_TEXTS], first
        )]  # fmt: skip

    def documents_of(self, piece: Window, index: int) -> Sequence[int]:
        return [piece.index]

    def _windows(self, examples: Sequence[Any], before: int) -> Iterator[Window]:
        questions, contexts = (
            self._backend.encode_batch([example[name] for example in examples], add_special_tokens=False)
            for name in ("question", "context")
        )
        for index, (example, question, context) in enumerate(zip(examples, questions, contexts, strict=True), before):
            self.num_cut += max(0, len(question) - self._most_question)
            question.truncate(self._most_question)
            room, first = self._room - len(question), 0
            while True:
                yield Window(example, question, context, first, min(first + room, len(context)), index)
                if first + room >= len(context):
                    break
                first += room - self._stride

    def row(self, piece: Window, generator: np.random.Generator) -> Row:
        """The row of one window."""
        references = self._references(piece.example)
        question, context = piece.question, _part(self._backend, piece)
        joined = self._backend.post_process(question, context)
        own = [sequence == 1 for sequence in joined.sequence_ids]
        inside = [at for at, is_context in enumerate(own) if is_context]
        none = joined.ids.index(self._cls) if self._cls in joined.ids else 0
        offsets = piece.context.offsets[piece.first : piece.last]
        assert len(inside) == len(offsets), (len(inside), len(offsets))
        span = _span(piece, references)
        start, end = (none, none) if span is None else (inside[span[0]], inside[span[1]])
        names = {"input_ids": joined.ids, "attention_mask": joined.attention_mask}
        names |= {"token_type_ids": joined.type_ids} if self._segments else {}
        row: Row = {name: np.array(values, dtype=np.int64) for name, values in names.items()}
        row |= {"start_positions": np.array(start), "end_positions": np.array(end)}
        return row if self._training else row | _for_scores(piece.example, references, inside, offsets, len(own), none)

    def _references(self, example: Question) -> Answers:
        answers, context = _answers(example["answers"]), example["context"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            there = context[start : start + len(text)] if start >= 0 else ""
            if not text or there != text:
                raise UnusableRowError(
                    "an answer is not where answer_start says",
                    f"the question {_shown(example['question'])} has the answer {_shown(text)} at character {start} of "
                    f"its context, where {_shown(there)} is",
                )
        if not answers["text"] and not self._unanswerable:
            raise DataError(
                f"the question {_shown(example['question'])} has no answer; set answering.unanswerable to true if "
                "that is meant, or leave such questions out."
            )
        return answers

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, …], padded to the longest row."""
        return collate(rows, self._padding)


def _part(backend: Tokenizer, piece: Window) -> Encoding:
    """The tokens of a window as an encoding of their own."""
    if piece.first == 0 and piece.last == len(piece.context):
        return piece.context
    part: Encoding = backend.encode(piece.example["context"], add_special_tokens=False)
    part.truncate(piece.last)
    part.truncate(piece.last - piece.first, direction="left")
    return part


def _span(piece: Window, references: Answers) -> tuple[int, int] | None:
    """The first and last token of the first answer, counted in the window; None if the window does not hold them."""
    if not references["text"]:
        return None
    begin = references["answer_start"][0]
    end = begin + len(references["text"][0])
    touched = [at for at, (first, last) in enumerate(piece.context.offsets) if first < end and last > begin]
    if not touched or touched[0] < piece.first or touched[-1] >= piece.last:
        return None
    return touched[0] - piece.first, touched[-1] - piece.first


def _for_scores(
    example: Question, references: Answers, inside: list[int], offsets: list[tuple[int, int]], length: int, none: int
) -> Row:
    places = np.full((length, 2), -1, dtype=np.int64)
    places[inside] = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    texts = json.dumps(references["text"])
    key = hashlib.sha256(f"{example['question']}\0{example['context']}\0{texts}".encode()).digest()[:7]
    return {
        "offsets": places,
        "context": as_bytes(example["context"]),
        "references": as_bytes(texts),
        "questions": np.array(int.from_bytes(key, "big")),
        "none_positions": np.array(none),
    }


def _answers(value: Any) -> Answers:
    """The answers of an example from lists by name, as in SQuAD, or from a list of mappings."""
    if isinstance(value, dict):
        return Answers(text=list(value["text"] or []), answer_start=list(value["answer_start"] or []))
    return Answers(text=[one["text"] for one in value], answer_start=[one["answer_start"] for one in value])


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def make(inputs: FormatInputs) -> QuestionRows:
    """Create the format from its inputs."""
    return QuestionRows(inputs)
