"""Tiny configurations of every model type that reads pictures with masked patches."""

from __future__ import annotations

from typing import Any

_PLAIN = {
    "image_size": 16,
    "patch_size": 4,
    "encoder_stride": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_STAGES = {"image_size": 16, "patch_size": 4, "encoder_stride": 8, "num_channels": 1, "embed_dim": 8, "depths": [1, 1]}
_WINDOWS = {**_STAGES, "num_heads": [1, 2], "window_size": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "deit": _PLAIN,
    "focalnet": {**_STAGES, "hidden_sizes": [8, 16], "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "vit": _PLAIN,
}
