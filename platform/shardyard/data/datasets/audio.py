"""Recordings as 16-bit WAV bytes at 16 kHz."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.data.datasets.rows import SAMPLING_RATE, MediaFile
from shardyard.data.media import resampling

WAV_HEADER_BYTES = 44


def audio(path: Path) -> MediaFile:
    """A column's value from a 16-bit mono WAV file, resampled to 16 kHz.

    Raises:
        ValueError: the file has another format.
    """
    samples, rate = read_wav(path.read_bytes())
    return {"bytes": wav(resample(samples, rate, SAMPLING_RATE)), "path": path.name}


def read_wav(data: bytes) -> tuple[np.ndarray[Any, Any], int]:
    """Samples (T,) int16 and their rate in Hz."""
    with wave.open(io.BytesIO(data)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise ValueError("not a 16-bit mono WAV file")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2"), file.getframerate()


def wav(samples: np.ndarray[Any, Any], rate: int = SAMPLING_RATE) -> bytes:
    """Samples (T,) int16 as the bytes of a mono WAV file."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return stream.getvalue()


def resample(samples: np.ndarray[Any, Any], rate: int, new_rate: int) -> np.ndarray[Any, Any]:
    """Samples (T,) int16 at another rate, (T·new_rate/rate,)."""
    if rate == new_rate:
        return samples
    signal = resampling.resample(samples.astype(np.float64), rate, new_rate)
    return np.clip(np.rint(signal), -(2**15), 2**15 - 1).astype(np.int16)
