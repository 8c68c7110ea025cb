"""Audio: from the bytes of a file to samples, and from samples to Whisper's features.

T: samples, M: Mel bins, F: frames of 10 ms.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from transformers import PreTrainedConfig, WhisperFeatureExtractor

from shardyard.data.media.resampling import Samples, resample
from shardyard.data.tables.opened import read_remote
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe import schema
from shardyard.recipe.sections.media import Resampler

RATE = 16_000  # Hz
FRAMES_PER_SECOND = 100
FRAME = RATE // FRAMES_PER_SECOND
# The encoder's convolutions merge two frames into one position.
POSITIONS_PER_SECOND = FRAMES_PER_SECOND // 2

Features = npt.NDArray[np.float32]


def feature_extractor(config: PreTrainedConfig) -> WhisperFeatureExtractor:
    """The extractor of log-Mel features with the number of bins and seconds of a Whisper model.

    Raises:
        DataError: the model's audio length is not a whole number of seconds, as the extractor requires.
    """
    positions = config.max_source_positions
    if positions % POSITIONS_PER_SECOND:
        raise DataError(
            f"model.config.max_source_positions is {positions}, which is {positions / POSITIONS_PER_SECOND} seconds of "
            f"audio; set a multiple of {POSITIONS_PER_SECOND}, a whole number of seconds."
        )
    return WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, sampling_rate=RATE, chunk_length=positions // POSITIONS_PER_SECOND
    )


def read_audio(value: Any, rate: int = RATE, how: Resampler = "fft") -> Samples:
    """Samples [T] of one channel, from -1 to 1.

    Args:
        value: bytes of a file that libsndfile reads (WAV, FLAC, OGG, MP3, …), its path, or a dictionary with `bytes` or
            `path`.
        rate: of the samples, in Hz. how: they are resampled, if the file has another rate.

    Raises:
        UnusableRowError: the file is not readable, or holds no samples, or such that are no numbers.
    """
    value = {"path": value} if isinstance(value, str) else value
    path = value.get("path") if isinstance(value, dict) else None
    content = value.get("bytes") if isinstance(value, dict) else value
    try:
        if content is None and isinstance(path, str) and "://" in path:
            content = read_remote(path)
        source = io.BytesIO(content) if content is not None else path
        samples, own_rate = soundfile.read(source, dtype="float32", always_2d=True)  # [T, channels]
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        raise UnusableRowError(f"recording {path or ''} cannot be read", str(error)) from error
    if not samples.size or not np.isfinite(samples).all():
        raise UnusableRowError("recording without samples" if not samples.size else "samples that are no numbers")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    return resample(mono, own_rate, rate, how)


def sound_bytes(value: Any) -> int:
    """Size of the file of a recording, an input of `read_audio`; 0 if it cannot be told."""
    value = {"path": value} if isinstance(value, str) else value
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is not None:
        return len(content)
    with contextlib.suppress(OSError, TypeError):
        return os.stat(value["path"]).st_size
    return 0


@dataclass(frozen=True)
class Move:
    """A random change of a recording.

    percent: of the samples that are played in the same time, so more than 100 are faster. silence: samples before.
    """

    percent: int = 100
    silence: int = 0
    how: Resampler = "fft"

    def of(self, samples: Samples) -> Samples:
        """The changed recording."""
        if self.percent != 100:
            samples = resample(samples, self.percent, 100, self.how)
        return np.pad(samples, (self.silence, 0)) if self.silence else samples

    def place(self, place: int) -> int:
        """Where a sample of the recording lies in the changed one."""
        return self.silence + place * 100 // self.percent


def draw_move(settings: schema.Audio, generator: np.random.Generator, rate: int = RATE) -> Move:
    """A random speed (which also changes the pitch) and a random silence before the start."""
    percent = 100
    if settings.speed:
        # Whole percentages keep the transform short.
        percent = max(1, round(100 * generator.uniform(1 - settings.speed, 1 + settings.speed)))
    return Move(percent, int(generator.uniform(0.0, settings.shift) * rate), settings.resampler)


def move(samples: Samples, settings: schema.Audio, generator: np.random.Generator, rate: int = RATE) -> Samples:
    """Change the speed (and pitch) of a recording and shift its start, at random."""
    return draw_move(settings, generator, rate).of(samples)


def mask(features: Features, frames: int, settings: schema.Audio, generator: np.random.Generator) -> Features:
    """Features [M, F] with random bands and time spans replaced by their mean (Park et al. 2019, SpecAugment).

    Args:
        frames: the number of frames that come from the recording; the silence after it is unchanged.
    """
    masked, mean = features.copy(), features.mean()
    for _ in range(settings.time_masks):
        masked[:, _stretch(frames, settings.time_mask_frames, generator)] = mean
    for _ in range(settings.frequency_masks):
        masked[_stretch(len(features), settings.frequency_mask_bins, generator)] = mean
    return masked


def _stretch(length: int, longest: int, generator: np.random.Generator) -> slice:
    width = int(generator.integers(min(longest, length) + 1))
    start = int(generator.integers(length - width + 1))
    return slice(start, start + width)
