"""The specification of `masked_image`."""

from __future__ import annotations

from shardyard.objectives.spec import PRETRAINING, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="masked_image",
    loss="shardyard.objectives.masked_image.loss:make",
    head=PRETRAINING,
    families=frozenset({"vit_mae"}),
    columns={"image": "image"},
    rows="masked_images",
    task="image-feature-extraction",
    sections=frozenset({"image"}),
    row_shape="image",
    text=False,
)
