"""Resampling of audio by the Fourier transform."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

# Silence around a recording while it is resampled: the Fourier transform treats the signal as periodic.
_MARGIN_SECONDS = 0.064

Samples = npt.NDArray[np.floating[Any]]


def resample(samples: Samples, rate: int, new_rate: int) -> Samples:
    """Samples [T] at another rate, [T·new_rate/rate]: the spectrum is truncated or padded with zeros.

    No frequency above half the lower rate remains, so there is no aliasing.
    """
    if rate == new_rate:
        return samples
    # Lengths in whole periods of both rates preserve their ratio and the position of the first sample.
    step = rate // math.gcd(rate, new_rate)
    margin = math.ceil(_MARGIN_SECONDS * rate / step) * step
    padded = np.pad(samples.astype(np.float64), (margin, margin + -len(samples) % step))
    length = len(padded) * new_rate // rate
    spectrum = np.fft.rfft(padded)[: min(len(padded), length) // 2 + 1]
    signal = np.fft.irfft(spectrum, length) * (length / len(padded))
    first, count = margin * new_rate // rate, len(samples) * new_rate // rate
    return signal[first : first + count].astype(samples.dtype)
