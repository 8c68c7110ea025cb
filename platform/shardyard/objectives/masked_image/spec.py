"""The specification of `masked_image`."""

from __future__ import annotations

from shardyard.objectives.spec import MASKED_IMAGES, PRETRAINING, ObjectiveSpec

SPEC = ObjectiveSpec(
    name="masked_image",
    loss="shardyard.objectives.masked_image.loss:make",
    head=PRETRAINING,
    families=frozenset({"vit_mae"}),
    other_heads=dict.fromkeys(("deit", "focalnet", "swin", "swinv2", "vit"), MASKED_IMAGES),
    columns={"image": "image"},
    rows="masked_images",
    task="image-feature-extraction",
    sections=frozenset({"image"}),
    row_shape="image",
    text=False,
)
