"""digits: 8×8 grey images of handwritten digits, from the files of scikit-learn, which need not be installed."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shardyard.data.datasets.images import image
from shardyard.data.datasets.rows import Converted, Row, mixed

NUM_HELD_OUT = 360
_SIDE = 8
_WHITE = 16


def convert(folders: Mapping[str, Path]) -> Converted:
    """The file's last images are `validation`: neighbouring images are from the same writer."""
    packed = (folders["scikit-learn"] / "sklearn/datasets/data/digits.csv.gz").read_bytes()
    table = np.array([line.split(",") for line in gzip.decompress(packed).decode().split()], np.float64).astype(
        np.int64
    )
    pixels = ((table[:, :-1] * 255 + _WHITE // 2) // _WHITE).astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    rows: list[Row] = [
        {"image": image(digit, f"digit-{index:04d}.png"), "label": int(label)}
        for index, (digit, label) in enumerate(zip(pixels, table[:, -1], strict=True))
    ]
    splits = {"train": mixed(rows[:-NUM_HELD_OUT], "train"), "validation": mixed(rows[-NUM_HELD_OUT:], "validation")}
    return Converted(splits, {"label": tuple(str(digit) for digit in range(10))})
