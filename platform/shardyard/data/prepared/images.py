"""Small images as PNG bytes that are the same on every machine."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_COLOUR_TYPES = {1: 0, 3: 2}
_IDX_BYTES = 0x08


def image(pixels: np.ndarray[Any, Any], path: str) -> dict[str, Any]:
    """A column's value from pixels of shape (H, W) or (H, W, 3), uint8."""
    return {"bytes": png(pixels), "path": path}


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels of shape (H, W) grey or (H, W, 3) RGB, uint8, as PNG.

    The pixels are stored, not deflated: what zlib makes of them depends on its version, and Parquet compresses them.
    """
    assert pixels.dtype == np.uint8, pixels.dtype
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, _COLOUR_TYPES[channels], 0, 0, 0)
    lines = pixels.reshape(pixels.shape[0], -1)
    filtered = np.hstack([np.zeros((len(lines), 1), np.uint8), lines]).tobytes()
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered, level=0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def shrink(pixels: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Square pixels (N, N, C) averaged over areas to (size, size, C), uint8.

    The same on every machine: the sums are whole numbers that a float64 holds exactly.
    """
    side = len(pixels)
    weights = _area_weights(side, size)
    lines = (weights @ pixels.reshape(side, -1).astype(np.float64)).reshape(size, side, -1)
    total = np.swapaxes(np.tensordot(lines, weights, axes=(1, 1)), 1, 2)  # (size, C, size) → (size, size, C)
    averages: np.ndarray[Any, Any] = np.floor(total / side**2 + 0.5).astype(np.uint8)
    return averages


def _area_weights(length: int, size: int) -> np.ndarray[Any, Any]:
    """(size, length): how many `size`-ths of each input lie in each output; a row sums to `length`."""
    starts = np.arange(size)[:, None] * length
    inputs = np.arange(length)[None, :] * size
    overlap = np.minimum(starts + length, inputs + size) - np.maximum(starts, inputs)
    weights: np.ndarray[Any, Any] = np.maximum(overlap, 0).astype(np.float64)
    return weights


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """The array of a gzipped IDX file of bytes, as MNIST and its likes come.

    Raises:
        ValueError: it is none.
    """
    data = gzip.decompress(path.read_bytes())
    zeros, kind, ndim = struct.unpack(">HBB", data[:4])
    if zeros or kind != _IDX_BYTES:
        raise ValueError(f"{path.name} is not an IDX file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(
        struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    )
