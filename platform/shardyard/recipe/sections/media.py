"""How images and recordings become tensors."""

from __future__ import annotations

from typing import Literal

from shardyard.recipe.sections.base import Section, described

Resampler = Literal["soxr", "fft"]
TooLong = Literal["segments", "unusable", "beginning"]


class Image(Section):
    """How images become tensors."""

    size: int | None = described(
        None,
        "Height and width of the images. Default: image_size of the model's configuration, or 224 where it has none.",
        "pixels",
        ge=1,
    )
    mean: list[float] = described(
        [0.5],
        "Mean of each channel for normalisation, of values in 0 … 1; one value serves all channels.",
        min_length=1,
    )
    std: list[float] = described([0.5], "Standard deviation of each channel for normalisation, likewise.", min_length=1)
    background: str | None = described(
        "#ffffff",
        "Colour behind transparent images. null drops the transparency and shows the colours that it hides, as runs "
        "that began before this field existed, and as most processors of transformers.",
        pattern=r"^#[0-9a-fA-F]{6}$",
    )
    white_level: float | None = described(
        None,
        "Value of white in images of 16 or 32 bits or of floats, such as 4095 for 12 bits; they are scaled to 8 bits. "
        "Default: 65535 for 16 bits, else the smallest of 1 (floats), 255, 65535 and the largest whole number that no "
        "value of the image exceeds. Values below 0 become black.",
        gt=0.0,
    )
    flip: bool = described(False, "Training: flip half of the images horizontally.")
    crop_padding: int = described(
        0, "Training: pad by this many pixels, then crop to the size at a random position.", "pixels", ge=0
    )
    min_scale: float = described(
        1.0,
        "Training: smallest area of a random resized crop, as a fraction of the image; 1 takes the whole image.",
        gt=0.0,
        le=1.0,
    )
    rotate: float = described(0.0, "Training: largest random rotation.", "degrees", ge=0.0, le=180.0)
    erase: float = described(0.0, "Training: probability of erasing a random rectangle.", ge=0.0, le=1.0)
    mask_ratio: float = described(
        0.6,
        "masked_image: fraction of an image that is masked. vit_mae has its own, model.config.mask_ratio.",
        gt=0.0,
        lt=1.0,
    )
    mask_size: int | None = described(
        None,
        "masked_image: height and width of the squares that are masked as one. Default: encoder_stride of the model's "
        "configuration. vit_mae masks patches.",
        "pixels",
        ge=1,
    )
    processor: Literal["model", "plain"] | None = described(
        None,
        "vision_language: who makes its rows. `model`: the model's own processor and chat template; of "
        "this section, `size`, `options`, and `mean` and `std` other than 0.5 then change the processor, and "
        "`min_scale`, `rotate` and `flip` change the pictures before it. `plain`, for LLaVA alone: `USER: <picture>`, "
        "the question on the next line, `ASSISTANT:` and the answer. Default: plain for llava, model for others.",
    )
    options: dict[str, object] = described(
        {}, "Arguments of the image processor of the model's own processor, such as {min_pixels: 3136}."
    )


class Audio(Section):
    """How recordings are changed in training; their length and features are those of the model's configuration."""

    seconds: float = described(
        30.0,
        "Longest recording, for models whose configuration does not fix it; `too_long` says what becomes of others. "
        "Models that normalise over time with the padding (wav2vec2-base, HuBERT, SpeechT5, Moonshine) read every row "
        "at this length, so keep it short.",
        "seconds",
        gt=0.0,
    )
    too_long: TooLong = described(
        "segments",
        "What becomes of a recording longer than the model hears. `segments`: it is cut with its text, at the end of "
        "the last segment that fits, if the source has the column `segments` (or `chunks`, `words`): a list of {end, "
        "text} or {timestamp: [start, end], text} in seconds; without it, and for classes and descriptions, the row is "
        "unusable (data.on_error). `unusable`: always. `beginning`: its beginning is kept with the whole text or "
        "class, so that a transcript says what is not heard; Whisper did so in runs that began before this field "
        "existed. Random changes of speed and start make no recording too long, except in such runs.",
    )
    resampler: Resampler = described(
        "soxr",
        "How recordings of another rate, and of another `speed`, are resampled: `soxr`, the SoX resampler at high "
        "quality, as librosa does; `fft`, one Fourier transform of the whole recording, as runs that began before this "
        "field existed, which takes 5 to 60 times as long.",
    )
    shift: float = described(0.0, "Longest random silence inserted before the recording.", "seconds", ge=0.0)
    speed: float = described(0.0, "Largest random change of the speed, as a fraction (Ko et al. 2015).", ge=0.0, lt=1.0)
    time_masks: int = described(0, "Number of time masks (SpecAugment, Park et al. 2019).", ge=0)
    time_mask_frames: int = described(20, "Length of the longest time mask, in frames of 10 ms.", "frames", ge=1)
    frequency_masks: int = described(0, "Number of frequency masks (SpecAugment).", ge=0)
    frequency_mask_bins: int = described(10, "Width of the widest frequency mask.", "Mel bins", ge=1)
    join: int = described(
        1,
        "Largest number of randomly drawn recordings that are joined in a row, as far as they fit.",
        "recordings",
        ge=1,
    )
    plain_text: bool = described(
        False, "Train on lower-case transcripts without punctuation, as error rates are computed."
    )
    ctc: float = described(
        0.0,
        "Weight of a second loss in training, which makes the encoder spell what it hears at each position (CTC, "
        "Graves et al. 2006) and so teaches it to listen from little data (Watanabe et al. 2017).",
        ge=0.0,
    )
