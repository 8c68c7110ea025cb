"""The specification of `vision_language`."""

from __future__ import annotations

from shardyard.objectives.spec import ObjectiveSpec

# Families whose own processor was seen to give a loss equal to that of transformers (tests/unit/data/formats/
# test_pictures_in_text.py), and which were trained.
FAMILIES = frozenset(
    {
        "aya_vision",
        "deepseek_vl",
        "exaone4_5",
        "gemma3",
        "glm46v",
        "glm4v",
        "idefics2",
        "idefics3",
        "internvl",
        "janus",
        "lighton_ocr",
        "llava",
        "llava_next",
        "llava_onevision",
        "mistral3",
        "mllama",
        "paddleocr_vl",
        "paligemma",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_vl",
        "qwen3_vl_moe",
        "smolvlm",
        "video_llama_3",
        "vipllava",
    }
)

SPEC = ObjectiveSpec(
    name="vision_language",
    loss="shardyard.objectives.answers:make",
    head=("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
    families=FAMILIES,
    columns={"image": "image", "prompt": "text", "response": "text"},
    layouts="pictures",
    rows="image_answers",
    task="image-text-to-text",
    sections=frozenset({"loss", "image", "chat"}),
    metrics={"perplexity": False, "token_accuracy": True},
    row_shape="image_within_text",
    reads_source=True,
    sees=True,
    vocabulary=True,
)
