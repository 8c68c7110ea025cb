"""Rows of recordings and what is said in them, for models in the manner of Whisper."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardyard.data.examples import ExampleRows
from shardyard.data.formats.context import Context
from shardyard.data.formats.target_text import PADDING, TEXT_PADDING, TargetText, TextEncoder
from shardyard.data.rows import Row
from shardyard.data.sound import FRAME, RATE, Features, feature_extractor, mask, move, read_sound


class Speech(ExampleRows):
    """A row is one recording. `num_cut` counts tokens of texts and frames (10 ms) of recordings that did not fit.

    M: Mel bins, F: frames, T: tokens of the text with its end. `input_features` float32 [M, F], `decoder_input_ids` and
    `labels` int64 [T]; in evaluation also the text, `reference`.
    """

    padding = PADDING | TEXT_PADDING

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._extractor = feature_extractor(context.model)
        self._target = TargetText(context, TextEncoder(context))
        self._settings, self._training, self._blind = context.audio, context.training, context.data.blind

    def row(self, piece: dict[str, Any], generator: np.random.Generator) -> Row:
        """Of one recording; a blind model hears zeros."""
        target, cut = self._target.row(piece["text"])
        self.num_cut += cut
        return {"input_features": self._features(piece["audio"], generator), **target}

    def _features(self, audio: Any, generator: np.random.Generator) -> Features:
        frames = self._extractor.nb_max_frames
        if self._blind:
            return np.zeros((self._extractor.feature_size, frames), dtype=np.float32)
        samples = read_sound(audio)
        if self._training:
            samples = move(samples, self._settings, generator)
        self.num_cut += max(0, len(samples) - self._extractor.n_samples) // FRAME
        features: Features = self._extractor(samples, sampling_rate=RATE)["input_features"][0]
        if self._training:
            features = mask(features, min(frames, len(samples) // FRAME), self._settings, generator)
        return features


def make(context: Context) -> Speech:
    """From its context.

    Raises:
        DataError: the tokenizer or the model lacks a token that begins or ends a text, or the model takes no whole
            number of seconds.
    """
    return Speech(context)
