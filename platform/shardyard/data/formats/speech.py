"""Rows of recordings with transcripts, for models like Whisper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.recordings import joined
from shardyard.data.formats.target_text import PADDING, TEXT_PADDING, TargetText, TextEncoder
from shardyard.data.media.audio import FRAME, RATE, Features, feature_extractor, mask, move, read_audio
from shardyard.data.media.resampling import Samples
from shardyard.data.sources.sources import Example
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row

_plain = BasicTextNormalizer()


class Recording(TypedDict):
    """An example; `audio` is an input of `read_audio`."""

    audio: object
    text: str


class Speech(ExampleRows):
    """A row is one recording, in training possibly with others after it.

    M: Mel bins, F: frames, T: tokens of the text with its end token. `input_features` float32 [M, F],
    `decoder_input_ids` and `labels` int64 [T]; in evaluation also the text, `reference`. `num_cut` counts tokens of
    texts and positions of the encoder (20 ms) that did not fit.
    """

    padding = PADDING | TEXT_PADDING

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self._extractor = feature_extractor(inputs.model)
        self._target = TargetText(inputs, TextEncoder(inputs))
        self._settings, self._training, self._drop_inputs = inputs.audio, inputs.training, inputs.data.drop_inputs

    def pieces(self, examples: Sequence[Example], generator: np.random.Generator) -> Sequence[Any]:
        """One list per example, which comes first in it; in training with others that may be joined to it."""
        return joined(examples, self._settings.join if self._training else 1, generator)

    def row(self, piece: list[Recording], generator: np.random.Generator) -> Row:
        """The row of all recordings that fit, at least the first; with `data.drop_inputs` they are silent."""
        samples, texts = self._heard(piece[0], generator), [self._text(piece[0])]
        for example in piece[1:]:
            longer = np.concatenate([samples, self._heard(example, generator)])
            more = [*texts, self._text(example)]
            if len(longer) <= self._extractor.n_samples and self._target.fits(" ".join(more)):
                samples, texts = longer, more
        target, cut = self._target.row(" ".join(texts))
        self.num_cut += cut + max(0, len(samples) - self._extractor.n_samples) // (2 * FRAME)
        return {"input_features": self._features(samples, generator), **target}

    def _text(self, example: Recording) -> str:
        text = example["text"]
        return _plain(text).strip() if self._settings.plain_text else text

    def _heard(self, example: Recording, generator: np.random.Generator) -> Samples:
        samples = read_audio(example["audio"])
        return move(samples, self._settings, generator) if self._training else samples

    def _features(self, samples: Samples, generator: np.random.Generator) -> Features:
        frames = self._extractor.nb_max_frames
        if self._drop_inputs:
            return np.zeros((self._extractor.feature_size, frames), dtype=np.float32)
        features: Features = self._extractor(samples, sampling_rate=RATE)["input_features"][0]
        if self._training:
            features = mask(features, min(frames, len(samples) // FRAME), self._settings, generator)
        return features


def make(inputs: FormatInputs) -> Speech:
    """Create the format from its inputs.

    Raises:
        DataError: the tokenizer or the model lacks a token that begins or ends a text, or the model's audio length is
            not a whole number of seconds.
    """
    return Speech(inputs)
