"""Rows of recordings with transcripts, for encoder–decoders that write what they hear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.recordings import Recording, Transcribed
from shardyard.data.formats.target_text import PADDING, TEXT_PADDING, TargetText, TextEncoder
from shardyard.data.media.listening import PADDING as HEARD_PADDING
from shardyard.data.stream.rows import Row


class Speech(Transcribed):
    """Rows of what the model hears (`data/media/listening.py`), `decoder_input_ids` and `labels` int64 [T], T tokens of
    the text with its end token; in evaluation also the text, `reference`.

    `num_cut` counts tokens of texts that did not fit, and of recordings that were cut 20 ms each.
    """

    padding: ClassVar[Mapping[str, float]] = HEARD_PADDING | PADDING | TEXT_PADDING

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._target = TargetText(inputs, TextEncoder(inputs))

    def row(self, piece: list[Recording], generator: np.random.Generator) -> Row:
        """The row of all recordings that fit, at least the first; with `data.drop_inputs` they are silent.

        Raises:
            UnusableRowError: the recording is too long.
        """
        samples, text = self.joined(piece, generator, self._target.fits)
        target, cut = self._target.row(text)
        heard = self.heard(samples, generator)
        self.num_cut += cut
        return {**heard, **target}


def make(inputs: FormatInputs) -> Speech:
    """Create the format from its inputs.

    Raises:
        DataError: the tokenizer or the model lacks a token that begins or ends a text, the family's hearing is not
            known, or the length of Whisper's input is not a whole number of seconds.
    """
    return Speech(inputs)
