"""Resampling of audio: by the SoX resampler, or by one Fourier transform of the whole recording."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from shardyard.recipe.sections.media import Resampler

# Silence around a recording while it is resampled: the Fourier transform treats the signal as periodic.
_MARGIN_SECONDS = 0.064

Samples = npt.NDArray[np.floating[Any]]


def resample(samples: Samples, rate: int, new_rate: int, how: Resampler = "fft") -> Samples:
    """Samples [T] at another rate, [T·new_rate/rate].

    No frequency above half the lower rate remains, so there is no aliasing. `soxr` also weakens those just below, as
    most pipelines do (librosa has the same filter); `fft` truncates the spectrum or pads it with zeros, in a time that
    depends on the prime factors of the lengths.
    """
    if rate == new_rate:
        return samples
    if how == "soxr":
        count = len(samples) * new_rate // rate
        found = soxr.resample(samples, rate, new_rate)[:count]
        return np.pad(found, (0, count - len(found))).astype(samples.dtype, copy=False)
    # Lengths in whole periods of both rates preserve their ratio and the position of the first sample.
    step = rate // math.gcd(rate, new_rate)
    margin = math.ceil(_MARGIN_SECONDS * rate / step) * step
    padded = np.pad(samples.astype(np.float64), (margin, margin + -len(samples) % step))
    length = len(padded) * new_rate // rate
    spectrum = np.fft.rfft(padded)[: min(len(padded), length) // 2 + 1]
    signal = np.fft.irfft(spectrum, length) * (length / len(padded))
    first, count = margin * new_rate // rate, len(samples) * new_rate // rate
    return signal[first : first + count].astype(samples.dtype)
