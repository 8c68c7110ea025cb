"""Recordings with what is said in them, spelled without an end token.

Legend: T = tokens of a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.recordings import Recording, Transcribed
from shardyard.data.formats.target_text import IGNORED, as_bytes
from shardyard.data.media.listening import PADDING
from shardyard.data.stream.rows import Row
from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import DataError, UnusableRowError


class SpelledRecordings(Transcribed):
    """Rows of what the model hears (`data/media/listening.py`) and `labels` int64 [T]; in evaluation also `reference`.

    A text longer than `sequence_length` makes its row unusable, because a part of it would be of no recording.
    """

    padding: ClassVar[Mapping[str, float]] = {**PADDING, "labels": IGNORED, "reference": 0}

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._backend = plain_backend(inputs.text_tokenizer)
        self._length, self._blank = inputs.sequence_length, inputs.model.pad_token_id
        if self._blank is None:
            raise DataError(
                "CTC needs a token that stands for no letter, and the tokenizer has neither a pad nor an eos token; "
                "choose another, such as bytes."
            )

    def row(self, piece: list[Recording], generator: np.random.Generator) -> Row:
        """The row of all recordings that fit, at least the first; with `data.drop_inputs` they are silent.

        Raises:
            UnusableRowError: the recording or its text is too long, or the text is empty.
        """
        samples, text = self.joined(piece, generator, lambda more: len(self._ids(more)) <= self._length)
        ids = self._ids(text)
        if len(ids) > self._length:
            raise UnusableRowError("text longer than data.sequence_length", f"{len(ids)} tokens of {self._length}")
        if not ids:
            raise UnusableRowError("recording without a text")
        row = {**self.heard(samples, generator), "labels": np.array(ids, dtype=np.int64)}
        return row if self.training else {**row, "reference": as_bytes(text)}

    def _ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def make(inputs: FormatInputs) -> SpelledRecordings:
    """Create the format from its inputs.

    Raises:
        DataError: the tokenizer has no token for the blank, or the family's hearing is not known.
    """
    return SpelledRecordings(inputs)
