"""Small images as PNG bytes that are the same on every machine."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from shardyard.data.datasets.rows import MediaFile

_COLOUR_TYPES = {1: 0, 3: 2}
_IDX_BYTES = 0x08


def image(pixels: np.ndarray[Any, Any], path: str) -> MediaFile:
    """A column's value from pixels of shape (H, W) or (H, W, 3), uint8."""
    return {"bytes": png(pixels), "path": path}


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels of shape (H, W) grey or (H, W, 3) RGB, uint8, as PNG.

    The pixels are stored uncompressed: the output of zlib depends on its version, and Parquet compresses them anyway.
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


def on_white_square(pixels: np.ndarray[Any, Any], least: int = 1) -> np.ndarray[Any, Any]:
    """RGBA (H, W, 4) → RGB (N, N, 3) with N = max(H, W, least), centred on a white square."""
    height, width = pixels.shape[:2]
    side = max(height, width, least)
    square = np.full((side, side, 3), 255, np.uint8)
    alpha = pixels[..., 3:].astype(np.int64)
    blended = (pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = blended
    return square


def shrink(pixels: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Square pixels (N, N, C) averaged over areas to (size, size, C), uint8; exact, in integer arithmetic."""
    lines = _area_sums(pixels.astype(np.int64), size)  # (size, N, C)
    total = np.swapaxes(_area_sums(np.swapaxes(lines, 0, 1), size), 0, 1)  # (size, size, C)
    area = len(pixels) ** 2
    averages: np.ndarray[Any, Any] = ((total + area // 2) // area).astype(np.uint8)
    return averages


def _area_sums(values: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """(N, …) → (size, …): `size` times the sum over each of `size` equal parts, whose ends may be fractional."""
    until = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    whole, part = np.divmod(np.arange(size + 1) * len(values), size)
    following = np.concatenate([values, np.zeros_like(values[:1])])[whole]
    sums: np.ndarray[Any, Any] = np.diff(size * until[whole] + part.reshape(-1, 1, 1) * following, axis=0)
    return sums


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """The array of a gzipped IDX file of bytes, the format of MNIST and similar datasets.

    Raises:
        ValueError: the file is not one.
    """
    data = gzip.decompress(path.read_bytes())
    zeros, kind, ndim = struct.unpack(">HBB", data[:4])
    if zeros or kind != _IDX_BYTES:
        raise ValueError(f"{path.name} is not an IDX file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(
        struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    )
