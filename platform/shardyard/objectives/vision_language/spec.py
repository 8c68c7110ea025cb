"""The specification of `vision_language`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    name="vision_language",
    loss="shardyard.objectives.answers:make",
    head=("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    families=frozenset({"llava"}),
    columns={"image": "image", "prompt": "text", "response": "text"},
    rows="image_answers",
    task="image-text-to-text",
    sections=frozenset({"loss", "image"}),
    metrics={"perplexity": False, "token_accuracy": True},
    row_shape="image_within_text",
    reads_source=True,
)
