"""Pictures whose encoder sees mask tokens: the loss is transformers' own, and the masks are those of SimMIM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForMaskedImageModeling
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.errors import DataError
from shardyard.models.build import architecture_config, construct
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.objectives.registry import objective_spec
from shardyard.recipe import schema
from shardyard.recipe.families import families_with
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.pictures import picture_rules
from support.families.masked_pictures import CONFIGS
from support.images import image_fields


def rows_of(family: str, image: Mapping[str, object] | None = None, **config: object) -> Any:
    section = schema.Model(family=family, config={**CONFIGS[family], **config}, dropout=0.0)
    made = architecture_config(section, vocabulary=None)
    data = schema.Data(train=[schema.Source(path="x")])
    inputs = FormatInputs(data, None, made, image=schema.Image(**(image or {})), training=False)
    return make_rows("masked_image", inputs), construct(section, made, "masked_image").eval()


def pictures(rows: Any, count: int = 6) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(5)
    noise = [Image.fromarray(generator.integers(0, 256, (20, 20), dtype=np.uint8)) for _ in range(count)]
    batch: dict[str, torch.Tensor] = rows.collate([rows.row({"image": one}, generator) for one in noise])
    return batch


def test_every_family_of_transformers_is_taken() -> None:
    assert CONFIGS.keys() == MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES.keys()
    assert families_with(objective_spec("masked_image")) == CONFIGS.keys() | {"vit_mae"}


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_the_loss_and_its_gradients_are_those_of_transformers(family: str) -> None:
    torch.manual_seed(0)
    rows, model = rows_of(family)
    assert type(model) is AutoModelForMaskedImageModeling._model_mapping[type(model.config)]
    batch = pictures(rows)
    theirs = model(**batch).loss
    theirs.backward()
    expected = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    objective = make_objective("masked_image", ObjectiveInputs(model=model.config))
    ours = objective.measure(model, batch).losses["loss"] / objective.counts(batch)["loss"]
    ours.backward()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert any("mask_token" in name for name in expected)
    for name, value in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(value.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_squares_of_patches_are_masked_as_one() -> None:
    """Windows of 8 pixels over patches of 4: three of four squares are masked, each with its four patches."""
    rows, _ = rows_of("swin")
    masks = pictures(rows)["bool_masked_pos"].view(-1, 2, 2, 2, 2).transpose(2, 3).reshape(-1, 4, 4)
    assert masks.sum(dim=(1, 2)).tolist() == [4 * math.ceil(4 * 0.6)] * 6
    assert bool((masks.all(-1) == masks.any(-1)).all())
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1


def test_share_and_size_of_the_squares_are_those_of_the_recipe() -> None:
    rows, _ = rows_of("vit", {"mask_ratio": 0.25, "mask_size": 8})
    assert pictures(rows)["bool_masked_pos"].sum(-1).tolist() == [4] * 6


def test_a_decoder_that_predicts_other_squares_is_refused() -> None:
    with pytest.raises(DataError, match=r"set encoder_stride: 4 in model\.config"):
        rows_of("vit", encoder_stride=16)
    with pytest.raises(DataError, match="masked in squares of 6"):
        rows_of("vit", {"mask_size": 6})


@pytest.mark.parametrize(
    ("objective", "family", "text"),
    [("image_classification", "vit", "masks nothing"), ("masked_image", "vit_mae", "model.config.mask_ratio")],
)
def test_masks_that_nothing_reads_are_found(objective: str, family: str, text: str) -> None:
    fields = image_fields(Path("x.parquet"), objective, {"family": family}, image={"mask_ratio": 0.5})
    ((path, finding),) = picture_rules(parse_recipe(fields))
    assert path == ("image", "mask_ratio")
    assert text in finding
