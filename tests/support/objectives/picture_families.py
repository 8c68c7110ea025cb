"""Tiny configurations of vision–language families, and rows of pictures for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shardyard.data.formats import FormatInputs
from shardyard.data.multimodal.placeholders import add_placeholders, placeholder_ids
from shardyard.data.multimodal.processor import own_processor
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.recipe import schema
from support.objectives.vision_language import recipe_fields as question_fields

_SIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_SIDE, "num_key_value_heads": 2, "max_position_embeddings": 512}
_LLAMA = {**_TEXT, "model_type": "llama"}
_CLIP = {**_SIDE, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8}
_SIGLIP = {**_SIDE, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8}
_PIXTRAL = {**_SIDE, "model_type": "pixtral", "image_size": 32, "patch_size": 8, "head_dim": 16}
_PINPOINTS = [[16, 32], [32, 16], [32, 32]]
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
_QWEN = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}

_GLM = {**_QWEN, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}

# Family → model.config. Names with a slash are another configuration of the family before it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {"text_config": _LLAMA, "vision_config": _CLIP},
    "llava/pixtral": {"text_config": _LLAMA, "vision_config": _PIXTRAL, "vision_feature_layer": -1},
    "vipllava": {"text_config": _LLAMA, "vision_config": _CLIP, "vision_feature_layers": [-1, -2]},
    "llava_next": {"text_config": _LLAMA, "vision_config": _CLIP, "image_grid_pinpoints": _PINPOINTS},
    "llava_onevision": {
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "vision_config": _SIGLIP,
        "image_grid_pinpoints": _PINPOINTS,
        "vision_feature_layer": -1,
    },
    "qwen2_vl": {
        "text_config": {**_TEXT, "rope_parameters": _ROPE},
        "vision_config": {**_QWEN, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "rope_parameters": _ROPE},
        "vision_config": {
            **_QWEN,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "head_dim": 16, "rope_parameters": _ROPE},
        "vision_config": {
            **_QWEN,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    },
    "gemma3": {
        "text_config": {**_TEXT, "head_dim": 16, "sliding_window": 64},
        "vision_config": _SIGLIP,
        "mm_tokens_per_image": 4,
    },
    "paligemma": {
        "text_config": {**_TEXT, "model_type": "gemma", "head_dim": 16},
        "vision_config": {**_SIGLIP, "projection_dim": 32},
        "projection_dim": 32,
    },
    "idefics2": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_SIDE, "image_size": 32, "patch_size": 8},
        "perceiver_config": {
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
    },
    "idefics3": {
        "text_config": _LLAMA,
        "vision_config": {**_SIDE, "image_size": 16, "patch_size": 4},
        "scale_factor": 2,
    },
    "smolvlm": {
        "text_config": _LLAMA,
        "vision_config": {**_SIDE, "image_size": 16, "patch_size": 4},
        "scale_factor": 2,
    },
    "internvl": {
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "vision_config": {**_SIDE, "image_size": [16, 16], "patch_size": [4, 4]},
    },
    "mllama": {
        "text_config": {**_TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "attention_heads": 2,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "image_size": 16,
            "patch_size": 8,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [1],
            "max_num_tiles": 4,
        },
    },
    "glm4v": {
        "text_config": {**_TEXT, "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0}},
        "vision_config": {**_GLM, "image_size": 16},
    },
    "glm46v": {
        "text_config": {**_TEXT, "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0}},
        "vision_config": {**_GLM, "image_size": 16},
    },
    "aya_vision": {
        "text_config": {**_TEXT, "model_type": "cohere2", "head_dim": 16},
        "vision_config": {**_SIGLIP, "image_size": 32},
        "downsample_factor": 2,
    },
    "qwen3_5": {
        "text_config": {
            **_TEXT,
            "head_dim": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
        },
        "vision_config": {
            **_QWEN,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
        },
    },
    "qwen3_vl_moe": {
        "text_config": {
            **_TEXT,
            "head_dim": 16,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": _ROPE,
        },
        "vision_config": {
            **_QWEN,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    },
    "deepseek_vl": {"text_config": _LLAMA, "vision_config": _SIGLIP},
    "janus": {
        "text_config": _LLAMA,
        "vision_config": {**_SIDE, "image_size": 16, "patch_size": 8, "projection_dim": 32, "mlp_ratio": 2},
        "vq_config": {
            "embed_dim": 8,
            "num_embeddings": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
            "latent_channels": 32,
        },
    },
    "lighton_ocr": {
        "text_config": {**_TEXT, "model_type": "qwen3", "head_dim": 16},
        "vision_config": _PIXTRAL,
        "spatial_merge_size": 2,
    },
    "video_llama_3": {
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "vision_config": {**_SIDE, "patch_size": 4},
    },
    "paddleocr_vl": {
        "text_config": {**_TEXT, "head_dim": 16, "rope_parameters": _ROPE},
        "vision_config": {**_SIDE, "image_size": 16, "patch_size": 4, "spatial_merge_size": 2},
    },
    "exaone4_5": {
        "text_config": {
            **_TEXT,
            "model_type": "exaone4",
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {
            **_GLM,
            "model_type": "exaone4_5_vision",
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "num_key_value_heads": 2,
        },
    },
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": _PIXTRAL,
        "vision_feature_layer": -1,
    },
}
# Family → section `image`, where the sizes of the class are too large for a test.
IMAGES: dict[str, dict[str, object]] = {"paddleocr_vl": {"size": 32}}


def family_of(name: str) -> str:
    """The model type."""
    return name.partition("/")[0]


def noise(width: int, height: int, seed: int) -> Image.Image:
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# A row of one picture, and one of two with other shapes.
ROWS: list[dict[str, Any]] = [
    {"image": noise(20, 30, 1), "prompt": "Colour?", "response": "red"},
    {
        "images": [noise(30, 16, 2), noise(16, 16, 3)],
        "prompt": "<image>One<image> and two?",
        "response": "blue and green",
    },
]


@dataclass(frozen=True)
class Tiny:
    """A tiny model of a family, and the inputs of its row format."""

    model: Any
    inputs: FormatInputs


def tiny_inputs(name: str, image: Mapping[str, object] | None = None, sequence_length: int = 512) -> FormatInputs:
    """The inputs of a family's row format, with the byte tokenizer and a processor of its own."""
    family, config = family_of(name), FAMILIES[name]
    tokenizer = load_tokenizer("bytes")
    add_placeholders(tokenizer, family, config)
    made = architecture_config(
        schema.Model(family=family, config=config, dropout=0.0),
        vocabulary=vocabulary_size(tokenizer),
        special_tokens=special_token_ids(tokenizer),
        placeholders=placeholder_ids(tokenizer, family, config),
    )
    section = schema.Image(**(image or IMAGES.get(name, {})))
    data = schema.Data(sequence_length=sequence_length, train=[schema.Source(path="x")])
    processor = own_processor(family, made, tokenizer, section)
    return FormatInputs(data, tokenizer, made, image=section, training=False, processor=processor)


def tiny(name: str) -> Tiny:
    """A tiny model of a family with fixed random weights."""
    inputs = tiny_inputs(name)
    torch.manual_seed(0)
    model = construct(schema.Model(family=family_of(name), config=FAMILIES[name]), inputs.model, "vision_language")
    return Tiny(model.eval(), inputs)


def recipe_fields(name: str, data: Path, steps: int) -> dict[str, Any]:
    """A recipe of a tiny model of a family, on the questions of `support.objectives.vision_language`."""
    return {
        **question_fields(data),
        "name": name.replace("/", "-"),
        "model": {"family": family_of(name), "config": FAMILIES[name], "dropout": 0.0},
        "data": {**question_fields(data)["data"], "sequence_length": 256},
        "image": IMAGES.get(name, {}),
        "train": {"steps": steps, "global_batch": 8, "precision": "fp32", "seed": 7},
        "checkpoint": {"every": max(1, steps // 2)},
        "evaluate": {"every": steps, "rows": 8},
    }
