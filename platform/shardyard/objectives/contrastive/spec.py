"""The specification of `contrastive`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

# Those of the head whose embeddings are compared by one learned scale. Others see video (videoprism), or compare each
# text with several embeddings of a picture and have a second loss beside it (blip-2).
_FAMILIES = frozenset(
    {"align", "altclip", "blip", "chinese_clip", "clip", "clipseg", "metaclip_2", "siglip", "siglip2", "tipsv2"}
)

SPEC = ObjectiveSpec(
    name="contrastive",
    loss="shardyard.objectives.contrastive.loss:make",
    head=("AutoModelForZeroShotImageClassification", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    families=_FAMILIES,
    columns={"image": "image", "text": "text"},
    rows="captions",
    task="zero-shot-image-classification",
    sections=frozenset({"image"}),
    metrics={f"{way}_recall_at_{k}": True for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)},
    row_shape="image_and_text",
    whole_batch=True,
    zero_shot=True,
)
