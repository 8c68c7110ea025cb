"""Rows of recordings with transcripts, for encoder–decoders that write what they hear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.recordings import Recording, Transcribed
from shardyard.data.formats.target_text import PADDING, TEXT_PADDING, TargetText, TextEncoder
from shardyard.data.media.audio import FRAME
from shardyard.data.media.listening import PADDING as HEARD_PADDING
from shardyard.data.stream.rows import Row


class Speech(Transcribed):
    """Rows of what the model hears (`data/media/listening.py`), `decoder_input_ids` and `labels` int64 [T], T tokens of
    the text with its end token; in evaluation also the text, `reference`.

    `num_cut` counts tokens of texts, and for Whisper, whose input has a fixed length, positions of the encoder (20 ms)
    that did not fit; for others a recording longer than `audio.seconds` is unusable.
    """

    padding: ClassVar[Mapping[str, float]] = HEARD_PADDING | PADDING | TEXT_PADDING

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._target = TargetText(inputs, TextEncoder(inputs))
        self._cuts = inputs.model.model_type == "whisper"

    def row(self, piece: list[Recording], generator: np.random.Generator) -> Row:
        """The row of all recordings that fit, at least the first; with `data.drop_inputs` they are silent.

        Raises:
            UnusableRowError: the recording is too long.
        """
        samples, text = self.joined(piece, generator, self._target.fits)
        target, cut = self._target.row(text)
        if self._cuts:
            cut += max(0, len(samples) - self.listener.longest) // (2 * FRAME)
            samples = samples[: self.listener.longest]
        self.num_cut += cut
        return {**self.heard(samples, generator), **target}


def make(inputs: FormatInputs) -> Speech:
    """Create the format from its inputs.

    Raises:
        DataError: the tokenizer or the model lacks a token that begins or ends a text, the family's hearing is not
            known, or the length of Whisper's input is not a whole number of seconds.
    """
    return Speech(inputs)
