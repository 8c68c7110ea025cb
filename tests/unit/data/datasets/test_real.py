"""Sets from the registries themselves: of Debian, of PyPI, and what this Python holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shardyard.data.datasets import dataset_files, dataset_fingerprint
from shardyard.data.datasets.prepare import prepare
from shardyard.data.datasets.store import damaged_files
from shardyard.recipe.catalog.datasets import DATASETS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["wordnet-glosses", "plays", "docstring-preferences", "function-summaries", "python-doc-entities"]
)
def test_a_set_is_prepared_twice_with_the_same_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = []
    for folder in ("first", "second"):
        monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path / folder))
        prepare(name, print)
        prints.append(dataset_fingerprint(name))
        assert damaged_files(name) == []
    assert prints[0] == prints[1]
    for split, num_rows in DATASETS[name].num_rows.items():
        found = pq.ParquetFile(dataset_files(name, split)[0]).metadata.num_rows
        # Another Python has other docstrings: 3.11.2 of Debian a sixth fewer pairs than 3.11.7.
        tolerance = 0.25 if name in ("docstring-preferences", "function-summaries") else 0.02
        assert abs(found - num_rows) <= tolerance * num_rows, "newer packages may differ a little"


def test_emoji_are_what_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path))
    prepare("emoji-captions", print)
    rows = [
        row
        for split in ("train", "validation")
        for row in pq.read_table(dataset_files("emoji-captions", split)[0]).to_pylist()
    ]
    named = {row["text"]: row for row in rows}
    for name, colour in (
        ("red circle", (244, 67, 54)),
        ("blue circle", (33, 150, 243)),
        ("white circle", (224, 224, 224)),
    ):
        pixels = np.asarray(Image.open(io.BytesIO(named[name]["image"]["bytes"]))).astype(int)
        assert pixels.shape == (64, 64, 3)
        assert np.abs(pixels[28:36, 28:36] - colour).mean() < 40, name
        assert (pixels[0, 0] == 255).all(), "the corner is white"
    assert named["red circle"]["text_fr"] == "disque rouge"
    assert named["family: man, woman, boy"]["hexcode"] == "1F468-200D-1F469-200D-1F466"
    assert not any("skin tone" in row["text"] for row in rows)
