"""Models of images are measured whatever their family calls its sizes: weights and products as published."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.models.build import architecture_config
from shardyard.models.size.measure import measure_recipe
from shardyard.planning.architecture import Architecture
from shardyard.recipe.loading.load import parse_recipe

IMAGENET = {"num_labels": 1000}


def measured(
    family: str, objective: str = "image_classification", size: int | None = None, **config: Any
) -> Architecture:
    recipe = parse_recipe(
        {
            "name": "measured",
            "model": {"family": family, "config": config},
            "objective": objective,
            "image": {"size": size} if size else {},
            "data": {"train": [{"source": "digits"}]},
            "train": {"steps": 1, "global_batch": 8},
            "optimizer": {"name": "adamw", "lr": 1e-3},
        }
    )
    return measure_recipe(recipe, architecture_config(recipe.model, vocabulary=None))


@pytest.mark.parametrize(
    ("family", "config", "parameters", "giga_products", "layers", "hidden", "tokens"),
    [
        # Dosovitskiy et al. 2020, table 1; products as Touvron et al. 2020 (DeiT) give them.
        ("vit", {}, 86_567_656, 17.6, 12, 768, 196),
        # He et al. 2015, table 1: 3.8 billion, with the stride of a stage in its first convolution, not in its second.
        ("resnet", {}, 25_557_032, 4.1, 16, 2048, 196),
        # Liu et al. 2021, table 1.
        ("swin", {}, 28_288_354, 4.5, 12, 768, 3136),
        # Tan and Le 2019, table 2: B7, 66 million and 37 billion at 600 pixels.
        ("efficientnet", {}, 66_347_960, 37.0, 64, 2560, 1369),
        # Liu et al. 2022 (ConvNeXt), table 9: 29 million and 4.5 billion.
        ("convnext", {}, 28_589_128, 4.5, 18, 768, 3136),
    ],
)
def test_published_classifiers(
    family: str, config: dict[str, Any], parameters: int, giga_products: float, layers: int, hidden: int, tokens: int
) -> None:
    found = measured(family, **IMAGENET, **config)
    assert found.parameters == parameters
    assert (found.layers, found.hidden_size, found.tokens_per_row) == (layers, hidden, tokens)
    assert found.flops_per_row is not None
    # Forward and backward pass, and two operations a product.
    assert found.flops_per_row / 6e9 == pytest.approx(giga_products, rel=0.05)


def test_a_masked_autoencoder_encodes_what_it_sees_alone() -> None:
    found = measured("vit_mae", "masked_image")
    whole = measured("vit_mae", "masked_image", mask_ratio=0.0)
    assert found.parameters == 111_907_840
    assert found.flops_per_row is not None
    assert whole.flops_per_row is not None
    assert found.flops_per_row < 0.5 * whole.flops_per_row


@pytest.mark.parametrize("family", ["deit", "levit", "swinv2", "mobilenet_v2", "regnet", "pvt", "poolformer", "dinov2"])
def test_other_families_by_name_alone(family: str) -> None:
    """`levit` and the like normalise over a batch, which one row alone is none for; `deit` has two heads of a kind."""
    found = measured(family)
    assert found.parameters > 1_000_000
    assert found.flops_per_row
    assert found.kept_32 is not None
    assert found.kept_32.between("none") > 0


def test_images_of_another_size_cost_less() -> None:
    small, large = measured("resnet", size=112, **IMAGENET), measured("resnet", **IMAGENET)
    assert small.parameters == large.parameters
    assert small.flops_per_row == pytest.approx((large.flops_per_row or 0) / 4, rel=0.1)
