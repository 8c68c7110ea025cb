"""The specification of `image_classification`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="image_classification",
    loss="shardyard.objectives.classification:make",
    head=("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    columns={"image": "image", "label": "label"},
    rows="labelled_images",
    task="image-classification",
    sections=frozenset({"loss", "image"}),
    metrics={"accuracy": True, "accuracy_top5": True, "f1": True},
    row_shape="image",
    text=False,
    new_head=True,
    classes=True,
)
