"""Recordings as rows: what all formats of sound share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypedDict

import numpy as np
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.audio import move, read_audio
from shardyard.data.media.listening import PADDING, listener
from shardyard.data.media.resampling import Samples
from shardyard.data.sources.sources import Example
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row

_plain = BasicTextNormalizer()


class Recording(TypedDict):
    """An example; `audio` is an input of `read_audio`."""

    audio: object
    text: str


class Recordings(ExampleRows):
    """Base of formats whose rows hold a recording as the model hears it; changed at random in training, and silent with
    `data.drop_inputs`."""

    padding: ClassVar[Mapping[str, float]] = PADDING

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self.listener = listener(inputs.model, inputs.audio)
        self.settings, self.training = inputs.audio, inputs.training
        self._silent = inputs.data.drop_inputs

    def samples(self, example: Any, generator: np.random.Generator) -> Samples:
        """The samples of an example with `audio`, in training with another speed and start."""
        rate = self.listener.rate
        samples = read_audio(example["audio"], rate)
        return move(samples, self.settings, generator, rate) if self.training else samples

    def heard(self, samples: Samples, generator: np.random.Generator) -> Row:
        """The part of a row that the model hears."""
        return self.listener.row(samples, self.settings, generator if self.training else None, silent=self._silent)


class Transcribed(Recordings):
    """Base of formats whose rows hold one recording with its text, in training possibly with others after it."""

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        # By piece of the last window, the examples drawn to be joined to it; and those that were, of the last row.
        self._chosen: list[list[int]] = []
        self._joined: list[int] = []

    def pieces(self, examples: Sequence[Example], generator: np.random.Generator) -> Sequence[Any]:
        """One list per example, which comes first in it; in training with others that may be joined to it."""
        join = self.settings.join if self.training else 1
        if join == 1:
            return [[example] for example in examples]
        numbers = generator.integers(join, size=len(examples))
        chosen = [generator.integers(len(examples), size=number) for number in numbers]
        self._chosen = [[int(c) for c in more] for more in chosen]
        return [[example, *(examples[c] for c in more)] for example, more in zip(examples, chosen, strict=True)]

    def documents_of(self, piece: Sequence[Recording], index: int) -> Sequence[int]:
        more = self._chosen[index] if len(piece) > 1 else []
        return list(dict.fromkeys([index, *(more[place] for place in self._joined)]))

    def joined(
        self, piece: Sequence[Recording], generator: np.random.Generator, fits: Callable[[str], bool]
    ) -> tuple[Samples, str]:
        """Samples and text of all recordings of a piece that fit, at least of the first.

        Args:
            fits: whether a row has room for a text.
        """
        samples, text = self.samples(piece[0], generator), self.text(piece[0])
        self._joined = []
        for place, example in enumerate(piece[1:]):
            longer = np.concatenate([samples, self.samples(example, generator)])
            more = f"{text} {self.text(example)}"
            if len(longer) <= self.listener.longest and fits(more):
                samples, text = longer, more
                self._joined.append(place)
        return samples, text

    def text(self, example: Recording) -> str:
        """The transcript, with `audio.plain_text` as error rates are computed."""
        return _plain(example["text"]).strip() if self.settings.plain_text else example["text"]
