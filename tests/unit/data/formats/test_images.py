"""Rows of images: with a class, or with the noise that decides which patches are hidden."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import ViTConfig, ViTMAEConfig

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.stream.held_out import held_out_rows
from shardyard.data.stream.loader import TrainLoader
from shardyard.errors import DataError, UnusableRowError
from shardyard.recipe import schema
from support.images import CLASSES, SIZE, png, write_images

VIT = ViTConfig(image_size=SIZE, patch_size=3, num_channels=1, num_labels=CLASSES)
MAE = ViTMAEConfig(image_size=SIZE, patch_size=3, num_channels=1)
AUGMENTED = schema.Image(flip=True, crop_padding=2)


def context(data: Path | None, model: Any, **fields: Any) -> FormatInputs:
    source = schema.Source(path=str(data), holdout=0.25)
    return FormatInputs(schema.Data(train=[source], streams=4, shuffle_window=8), model=model, **fields)


def loader(data: Path, objective: str, model: Any, *, dp_rank: int = 0, dp_size: int = 1) -> TrainLoader:
    return TrainLoader(
        context(data, model, image=AUGMENTED),
        objective=objective,
        global_batch=8,
        streams=4,
        seed=1,
        dp_rank=dp_rank,
        dp_size=dp_size,
    )


def test_a_row_is_an_image_and_its_class() -> None:
    rows = make_rows("image_classification", context(Path("unused"), VIT, training=False))
    pixels = np.full((SIZE, SIZE), 255, np.uint8)
    row = rows.row({"image": png(pixels), "label": 2}, np.random.default_rng(0))  # type: ignore[attr-defined]
    batch = rows.collate([row, row])
    assert batch["pixel_values"].shape == (2, 1, SIZE, SIZE)
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["labels"], torch.tensor([2, 2]))


def test_a_label_that_the_model_does_not_have_is_an_unusable_row() -> None:
    rows = make_rows("image_classification", context(Path("unused"), VIT))
    example = {"image": png(np.zeros((SIZE, SIZE), np.uint8)), "label": CLASSES}
    with pytest.raises(UnusableRowError, match=rf"it has 3 classes, 0 to 2: the label is {CLASSES}; set num_labels"):
        rows.row(example, np.random.default_rng(0))  # type: ignore[attr-defined]
    with pytest.raises(UnusableRowError, match="the label -1, which stands for no class"):
        rows.row({**example, "label": -1}, np.random.default_rng(0))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("objective", "model"), [("image_classification", VIT), ("masked_image", MAE)])
def test_the_global_batch_does_not_depend_on_the_ranks(tmp_path: Path, objective: str, model: Any) -> None:
    data = write_images(tmp_path)
    alone = loader(data, objective, model)
    both = [loader(data, objective, model, dp_rank=rank, dp_size=2) for rank in range(2)]
    for _ in range(3):
        expected, parts = next(alone), [next(one) for one in both]
        for name in expected.micro_batches[0]:
            assert torch.equal(expected[name][0::2], parts[0][name])
            assert torch.equal(expected[name][1::2], parts[1][name])
    for one in (alone, *both):
        one.close()


@pytest.mark.parametrize(("objective", "model"), [("image_classification", VIT), ("masked_image", MAE)])
def test_a_restart_makes_the_same_rows(tmp_path: Path, objective: str, model: Any) -> None:
    data = write_images(tmp_path)
    straight = loader(data, objective, model)
    state = [next(straight) for _ in range(3)][-1].state
    resumed = loader(data, objective, model)
    resumed.load_state(state)
    first, second = next(straight), next(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first.micro_batches[0])
    straight.close()
    resumed.close()


def test_evaluation_hides_the_same_patches_of_the_plain_image_each_time(tmp_path: Path) -> None:
    data = write_images(tmp_path)
    evaluated = [
        held_out_rows(context(data, MAE, image=image, training=False), 8, 1, objective="masked_image")
        for image in (AUGMENTED, schema.Image())
    ]
    for name in ("pixel_values", "noise"):
        assert torch.equal(evaluated[0][name], evaluated[1][name])
    noise = evaluated[0]["noise"]
    assert noise.shape == (8, 16)
    assert len({tuple(row) for row in noise.tolist()}) == 8


def test_training_hides_other_patches_in_every_epoch(tmp_path: Path) -> None:
    data = write_images(tmp_path, count=32)
    rows = loader(data, "masked_image", MAE)
    seen = {tuple(row.tolist()) for _ in range(12) for row in next(rows)["noise"]}
    rows.close()
    assert len(seen) == 12 * 8, "32 images, three epochs, and no two rows alike"


def test_images_that_are_no_whole_patches_are_refused() -> None:
    with pytest.raises(DataError, match="12×12 pixels are not squares of whole patches of 5"):
        make_rows("masked_image", context(Path("unused"), ViTMAEConfig(image_size=12, patch_size=5, num_channels=1)))


def test_a_broken_image_names_its_source_and_itself(tmp_path: Path) -> None:
    good = png(np.zeros((SIZE, SIZE), np.uint8))
    rows = [{"image": {"bytes": good, "path": f"{index}.png"}, "label": 0} for index in range(40)]
    rows[7]["image"] = {"bytes": good[:40], "path": "seven.png"}
    data = tmp_path / "broken.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    source = schema.Source(path=str(data))
    counts = []
    for on_error in ("stop", "skip"):
        settings = FormatInputs(schema.Data(train=[source], on_error=on_error), model=VIT)
        reading = TrainLoader(
            settings, objective="image_classification", global_batch=8, streams=4, seed=1, dp_rank=0, dp_size=1
        )
        if on_error == "stop":
            with pytest.raises(DataError, match=r"broken\.parquet, row 8: the image 'seven\.png' cannot be decoded"):
                list(itertools.islice(reading, 5))
        else:
            list(itertools.islice(reading, 5))
            counts = [one["left_out"] for one in reading.stats()["sources"]]
        reading.close()
    assert counts[0]["unusable"] >= 1
    assert counts[0]["named"][0].startswith("broken.parquet, row 8: the image 'seven.png' cannot be decoded")
