"""Recordings as rows: what all formats of sound share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.audio import move, read_audio
from shardyard.data.media.listening import PADDING, listener
from shardyard.data.media.resampling import Samples
from shardyard.data.sources.sources import Example
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row


class Recordings(ExampleRows):
    """Base of formats whose rows hold a recording as the model hears it; changed at random in training."""

    padding: ClassVar[Mapping[str, float]] = PADDING

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self.listener = listener(inputs.model, inputs.audio)
        self.settings, self.training = inputs.audio, inputs.training

    def samples(self, example: Any, generator: np.random.Generator) -> Samples:
        """The samples of an example with `audio`, in training with another speed and start."""
        samples = read_audio(example["audio"])
        return move(samples, self.settings, generator) if self.training else samples

    def heard(self, samples: Samples, generator: np.random.Generator) -> Row:
        """The part of a row that the model hears."""
        return self.listener.row(samples, self.settings, generator if self.training else None)


def joined(examples: Sequence[Example], join: int, generator: np.random.Generator) -> list[list[Example]]:
    """One list per example, which comes first in it; up to `join` - 1 others are drawn from the same window."""
    if join == 1:
        return [[example] for example in examples]
    numbers = generator.integers(join, size=len(examples))
    chosen = [generator.integers(len(examples), size=number) for number in numbers]
    return [[example, *(examples[c] for c in more)] for example, more in zip(examples, chosen, strict=True)]
