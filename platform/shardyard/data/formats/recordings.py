"""Recordings as rows: what all formats of sound share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NotRequired, TypedDict, cast

import numpy as np
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.audio import POSITIONS_PER_SECOND, Move, draw_move, read_audio, sound_bytes
from shardyard.data.media.clipping import segments_of, text_until
from shardyard.data.media.listening import PADDING, listener
from shardyard.data.media.resampling import Samples
from shardyard.data.sources.sources import Example
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row

_plain = BasicTextNormalizer()


class Recording(TypedDict):
    """An example; `audio` is an input of `read_audio`, `segments` one of `segments_of`."""

    audio: object
    text: str
    segments: NotRequired[object]


class Recordings(ExampleRows):
    """Base of formats whose rows hold a recording as the model hears it; changed at random in training, and silent with
    `data.drop_inputs`."""

    padding: ClassVar[Mapping[str, float]] = PADDING

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self.listener = listener(inputs.model, inputs.audio)
        self.settings, self.training = inputs.audio, inputs.training
        self._silent = inputs.data.drop_inputs

    def length(self, piece: Any) -> int:
        """Bytes of the recordings of a piece, which are in files of one kind as a rule."""
        return sum(sound_bytes(one["audio"]) for one in (piece if isinstance(piece, list) else [piece]))

    def samples(self, example: Any, generator: np.random.Generator) -> Samples:
        """The samples of an example with `audio`, in training with another speed and start."""
        samples = self._read(example)
        moved = self._move(generator).of(samples)
        return samples if self._fits_only_unmoved(samples, moved) else moved

    def _read(self, example: Any) -> Samples:
        return read_audio(example["audio"], self.listener.rate, self.settings.resampler)

    def _move(self, generator: np.random.Generator) -> Move:
        return draw_move(self.settings, generator, self.listener.rate) if self.training else Move()

    def _count_cut(self, samples: int) -> None:
        self.num_cut += max(0, samples) // (self.listener.rate // POSITIONS_PER_SECOND)

    def _fits_only_unmoved(self, samples: Samples, moved: Samples) -> bool:
        """A random change makes no recording too long; only runs from before `audio.too_long` lost their ends so."""
        longest = self.listener.longest
        return self.settings.too_long == "segments" and len(moved) > longest >= len(samples)

    def heard(self, samples: Samples, generator: np.random.Generator) -> Row:
        """The part of a row that the model hears.

        Raises:
            UnusableRowError: the recording is too long, and `audio.too_long` does not keep its beginning.
        """
        if self.settings.too_long == "beginning":
            self._count_cut(len(samples) - self.listener.longest)
            samples = samples[: self.listener.longest]
        return self.listener.row(samples, self.settings, generator if self.training else None, silent=self._silent)


class _Several(list[Recording]):
    """An example and those that may be joined to it. `chosen`: the indices of these in the window."""

    chosen: Sequence[int] = ()


class Transcribed(Recordings):
    """Base of formats whose rows hold one recording with its text, in training possibly with others after it."""

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        # Of the examples that might be joined to the last row, those that were.
        self._joined: list[int] = []

    def pieces(self, examples: Sequence[Example], generator: np.random.Generator) -> Sequence[Any]:
        """One list per example, which comes first in it; in training with others that may be joined to it."""
        join = self.settings.join if self.training else 1
        if join == 1:
            return [[example] for example in examples]
        numbers = generator.integers(join, size=len(examples))
        chosen = [generator.integers(len(examples), size=number) for number in numbers]
        pieces = []
        for example, more in zip(cast(Sequence[Recording], examples), chosen, strict=True):
            piece = _Several([example, *(cast(Recording, examples[c]) for c in more)])
            piece.chosen = more.tolist()
            pieces.append(piece)
        return pieces

    def documents_of(self, piece: Sequence[Recording], index: int) -> Sequence[int]:
        more = piece.chosen if isinstance(piece, _Several) else ()
        return list(dict.fromkeys([index, *(more[place] for place in self._joined)]))

    def joined(
        self, piece: Sequence[Recording], generator: np.random.Generator, fits: Callable[[str], bool]
    ) -> tuple[Samples, str]:
        """Samples and text of all recordings of a piece that fit, at least of the first.

        Args:
            fits: whether a row has room for a text.
        """
        samples, text = self.clip(piece[0], generator)
        self._joined = []
        for place, example in enumerate(piece[1:]):
            longer = np.concatenate([samples, self.samples(example, generator)])
            more = f"{text} {self.text(example)}"
            if len(longer) <= self.listener.longest and fits(more):
                samples, text = longer, more
                self._joined.append(place)
        return samples, text

    def clip(self, example: Recording, generator: np.random.Generator) -> tuple[Samples, str]:
        """Samples and text of an example, both up to the last of its segments that the model hears to its end.

        Without segments, and if not even the first one fits, they are whole. What is cut is counted.
        """
        samples, move = self._read(example), self._move(generator)
        moved, longest = move.of(samples), self.listener.longest
        if len(moved) <= longest or self.settings.too_long != "segments":
            return moved, self.text(example)
        if len(samples) <= longest:
            return samples, self.text(example)
        segments = segments_of(example.get("segments"))
        for last in range(len(segments) - 1, -1, -1):
            end = move.place(round(segments[last].end * self.listener.rate))
            if end <= longest and (text := text_until(example["text"], segments, last)):
                self._count_cut(len(moved) - end)
                return moved[:end], self.text({**example, "text": text})
        return moved, self.text(example)

    def text(self, example: Recording) -> str:
        """The transcript, with `audio.plain_text` as error rates are computed."""
        return _plain(example["text"]).strip() if self.settings.plain_text else example["text"]
