"""Tiny configurations of every dual encoder of images and texts."""

from __future__ import annotations

from typing import Any

_SIDE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_SIDE, "max_position_embeddings": 52}
_VISION = {**_SIDE, "image_size": 16, "patch_size": 8}
_CLIP = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "align": {
        "text_config": _TEXT,
        "vision_config": {
            "image_size": 64,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "hidden_dim": 80,
            "drop_connect_rate": 0.0,
        },
        "projection_dim": 80,
    },
    "altclip": {**_CLIP, "text_config": {**_TEXT, "project_dim": 8}},
    "blip": {**_CLIP, "text_config": {**_TEXT, "encoder_hidden_size": 16}},
    "chinese_clip": _CLIP,
    "clip": _CLIP,
    "clipseg": _CLIP,
    "metaclip_2": _CLIP,
    "siglip2": {
        "text_config": _TEXT,
        "vision_config": {**_SIDE, "patch_size": 8, "num_patches": 16},
    },
    "siglip": {"text_config": _TEXT, "vision_config": _VISION},
    "tipsv2": {"text_config": _TEXT, "vision_config": _VISION},
}
