"""From samples to what a model of sound reads: by the feature extractor that transformers has for its family.

T: samples, at 16 kHz for all but CLAP, F: frames, M: features of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import transformers
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES

from shardyard.data.media.audio import FRAME, FRAMES_PER_SECOND, RATE, feature_extractor, mask
from shardyard.data.media.resampling import Samples
from shardyard.data.stream.rows import Row
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe import schema

# The published models have these extractors; the table of transformers names another one, or none.
_OWN = {"wav2vec2-bert": "SeamlessM4TFeatureExtractor", "moonshine_streaming": "Wav2Vec2FeatureExtractor"}
Settings = Callable[[Any], Mapping[str, object]]


def _wave(config: Any) -> Mapping[str, object]:
    # Models that normalise each layer were published with a mask; those that normalise groups over time, without.
    # Moonshine's were published with a mask, and without normalised samples.
    masked = getattr(config, "feat_extract_norm", "layer") == "layer"
    scaled = not config.model_type.startswith("moonshine")
    return {"sampling_rate": RATE, "do_normalize": scaled, "return_attention_mask": masked}


def _mel(config: Any) -> Mapping[str, object]:
    bins = config.input_feat_per_channel
    return {"feature_size": bins, "num_mel_bins": bins, "sampling_rate": RATE}


def _conformer(config: Any) -> Mapping[str, object]:
    return {"feature_size": config.num_mel_bins, "sampling_rate": RATE}


def _seamless(config: Any) -> Mapping[str, object]:
    width = config.feature_projection_input_dim
    stride = 2 if width % 2 == 0 else 1
    return {"feature_size": width // stride, "num_mel_bins": width // stride, "stride": stride, "sampling_rate": RATE}


def _spectrogram(config: Any) -> Mapping[str, object]:
    return {"num_mel_bins": config.num_mel_bins, "max_length": config.max_length, "sampling_rate": RATE}


def _clap(config: Any) -> Mapping[str, object]:
    # The encoder stretches its input to a picture of `spec_size`, which holds so many frames of 10 ms.
    frames = config.spec_size**2 // config.num_mel_bins
    seconds = (frames - 1) // FRAMES_PER_SECOND
    return {"feature_size": config.num_mel_bins, "max_length_s": seconds, "truncation": "rand_trunc"}


_SETTINGS: dict[str, Settings] = {
    "Wav2Vec2FeatureExtractor": _wave,
    "SpeechT5FeatureExtractor": lambda config: {"sampling_rate": RATE},
    "Speech2TextFeatureExtractor": _mel,
    "SeamlessM4TFeatureExtractor": _seamless,
    "ParakeetFeatureExtractor": _conformer,
    "CohereAsrFeatureExtractor": _conformer,
    "ASTFeatureExtractor": _spectrogram,
    "ClapFeatureExtractor": _clap,
}
_FIXED = ("ASTFeatureExtractor", "ClapFeatureExtractor")
_OF_SAMPLES = ("Wav2Vec2FeatureExtractor", "SpeechT5FeatureExtractor")


@dataclass(frozen=True)
class Listener:
    """Makes the part of a row that a model hears.

    own: the feature extractor of transformers; it is exported with the model.
    longest: samples of the longest recording.
    filled: whether every row has the length of the longest, because the model reads padding too: those that normalise
        over time without a mask, and those with a fixed input.
    axes: of what the model reads: samples, frames of features (CLAP's in one channel), or Whisper's features of frames.
    whole: the model reads a multiple of so many samples.
    """

    own: Any
    longest: int
    filled: bool
    axes: Literal["T", "FM", "CFM", "MF"]
    whole: int = 1

    @property
    def rate(self) -> int:
        """Samples in a second."""
        return int(self.own.sampling_rate)

    @property
    def waves(self) -> bool:
        """Whether the model reads samples."""
        return self.axes == "T"

    def row(
        self, samples: Samples, audio: schema.Audio, generator: np.random.Generator | None, *, silent: bool = False
    ) -> Row:
        """`input_values` or `input_features`, and `attention_mask` if the model reads one.

        Args:
            generator: for the masks of `audio`; None without.
            silent: all values are zero.

        Raises:
            UnusableRowError: the recording is longer than the model or the recipe allows.
        """
        if len(samples) > self.longest:
            raise UnusableRowError(
                f"recording longer than {self.longest / self.rate:g} seconds",
                f"it has {len(samples) / self.rate:.1f}, and audio.too_long keeps no part of it",
            )
        # Speech2Text's extractor divides a constant band, such as silence, by its deviation of zero.
        with np.errstate(divide="ignore", invalid="ignore"):
            heard = self.own(samples, sampling_rate=self.rate, return_tensors="np")
        name = self.own.model_input_names[0]
        values = np.nan_to_num(np.asarray(heard[name][0], dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        if silent:
            values = np.zeros_like(values)
        elif generator is not None:
            values = self._masked(values, len(samples), audio, generator)
        row = {name: values}
        if "attention_mask" in heard:
            row["attention_mask"] = np.asarray(heard["attention_mask"][0], dtype=np.int64)
        if self.waves:
            length = self.longest if self.filled else len(values)
            padding = -(-length // self.whole) * self.whole - len(values)
            row = {key: np.pad(value, (0, padding)) for key, value in row.items()}
        return row

    def _masked(
        self, values: npt.NDArray[np.float32], samples: int, audio: schema.Audio, generator: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        if self.axes == "CFM":
            frames = min(values.shape[1], samples // (self.rate // FRAMES_PER_SECOND))
            return mask(values[0].T, frames, audio, generator).T[None]
        if not self.waves:
            bins_first = values.T if self.axes == "FM" else values
            masked = mask(bins_first, min(bins_first.shape[1], samples // FRAME), audio, generator)
            return masked.T if self.axes == "FM" else masked
        values = values.copy()
        for _ in range(audio.time_masks):
            width = int(generator.integers(min(audio.time_mask_frames * FRAME, len(values)) + 1))
            start = int(generator.integers(len(values) - width + 1))
            values[start : start + width] = 0.0
        return values


def listener(config: Any, audio: schema.Audio) -> Listener:
    """The listener of a model.

    Raises:
        DataError: the family has no extractor that we can set, or its library is missing; or the recipe asks for masks
            of frequencies, and the model reads samples.
    """
    if config.model_type == "whisper":
        own = feature_extractor(config)
        return Listener(own, own.n_samples, filled=True, axes="MF")
    own, hearing = _extractor(config)
    name = type(own).__name__
    found = Listener(
        own,
        _longest(own, audio),
        filled=name in _FIXED or _normalises_over_time(hearing),
        axes="T" if name in _OF_SAMPLES else "CFM" if name == "ClapFeatureExtractor" else "FM",
        whole=_frame(config) if config.model_type == "moonshine_streaming" else 1,
    )
    if found.waves and audio.frequency_masks:
        raise DataError(
            f"audio.frequency_masks is {audio.frequency_masks}, but {config.model_type} reads samples and not "
            "frequencies; take it out."
        )
    return found


def _extractor(config: Any) -> tuple[Any, Any]:
    """The feature extractor of a family, and the configuration of the part of the model that hears."""
    hearing = config.encoder if config.model_type == "speech-encoder-decoder" else config
    name = _OWN.get(hearing.model_type) or FEATURE_EXTRACTOR_MAPPING_NAMES.get(hearing.model_type)
    if name not in _SETTINGS:
        raise DataError(
            f"Shardyard does not know how {hearing.model_type} hears: its feature extractor is {name}, and known are "
            f"{', '.join(sorted(_SETTINGS))} and Whisper's."
        )
    if _SETTINGS[name] is _conformer:
        hearing = config.encoder_config
    if _SETTINGS[name] is _clap:
        hearing = config.audio_config
        if hearing.enable_fusion:
            raise DataError(
                "model.config.audio_config.enable_fusion makes CLAP read random parts of long recordings, which a "
                "resumed run would not repeat; set it to false."
            )
    try:
        return getattr(transformers, name)(**_SETTINGS[name](hearing)), hearing
    except ImportError as error:
        raise DataError(
            f"{name}, by which {config.model_type} hears, needs a package that is not installed: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def _normalises_over_time(config: Any) -> bool:
    """Whether the first layer normalises a whole row, its padding included, so that padding changes what is heard."""
    return config.model_type == "moonshine" or getattr(config, "feat_extract_norm", "layer") == "group"


def _frame(config: Any) -> int:
    """Samples of a frame of Moonshine's streaming encoder, which reads whole frames."""
    encoder = config.encoder_config
    samples: int = round(encoder.sample_rate * encoder.frame_ms / 1000)
    return samples


def _longest(own: Any, audio: schema.Audio) -> int:
    limit = int(audio.seconds * own.sampling_rate)
    if (samples := getattr(own, "nb_max_samples", None)) is not None:
        return min(limit, int(samples))
    # A spectrogram of fixed length; a frame more or less depends on the rounding of its windows.
    frames = getattr(own, "max_length", None)
    if (clip := getattr(own, "max_audio_clip_s", None)) is not None:
        limit = min(limit, int((clip - own.overlap_chunk_second) * RATE))  # it cuts longer ones into several rows
    return limit if frames is None else min(limit, (frames - 2) * FRAME)


# What a row is padded with in a batch; a longer one decides its length.
PADDING = {"input_values": 0.0, "input_features": 0.0, "attention_mask": 0}
