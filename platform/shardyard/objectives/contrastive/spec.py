"""The specification of `contrastive`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="contrastive",
    loss="shardyard.objectives.contrastive.loss:make",
    head=("AutoModelForZeroShotImageClassification", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    families=frozenset({"clip"}),
    columns={"image": "image", "text": "text"},
    rows="captions",
    task="zero-shot-image-classification",
    sections=frozenset({"image"}),
    metrics={f"{way}_recall_at_{k}": True for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)},
    row_shape="image_and_text",
    whole_batch=True,
    zero_shot=True,
)
