"""The loss of image classification is that of transformers' own models, whatever their family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification

from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.recipe import schema
from support.objectives.image_classification import RESNET, VIT

FAMILIES: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "resnet": RESNET,
    "swin": {"image_size": 12, "patch_size": 3, "num_channels": 1, "embed_dim": 8, "depths": [1, 1]}
    | {"num_heads": [2, 2], "window_size": 2, "num_labels": 3},
    "efficientnet": {"num_channels": 1, "num_labels": 3, "image_size": 32, "hidden_dim": 320, "width_coefficient": 0.25}
    | {"depth_coefficient": 0.1},
    "convnext": {"num_channels": 1, "num_labels": 3, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    | {"patch_size": 2},
}


def _model(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()


def _batch(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(4, 1, size, size, generator=generator), "labels": torch.tensor([0, 2, 1, 2])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_is_the_loss_of_transformers(family: str) -> None:
    model, batch = _model(family), _batch(32 if family == "efficientnet" else 12)
    objective = make_objective("image_classification", ObjectiveInputs(model=model.config))
    with torch.no_grad():
        mean = objective.measure(model, batch).losses["loss"] / objective.counts(batch)["loss"]
        assert float(mean) == pytest.approx(float(model(**batch).loss), rel=1e-5)


def test_label_smoothing_is_that_of_the_recipe() -> None:
    model, batch = _model("vit"), _batch(12)
    objective = make_objective(
        "image_classification", ObjectiveInputs(loss=schema.Loss(label_smoothing=0.1), model=model.config)
    )
    logits = model(pixel_values=batch["pixel_values"]).logits
    expected = functional.cross_entropy(logits, batch["labels"], label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(objective.measure(model, batch).losses["loss"], expected)
