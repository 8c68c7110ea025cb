"""The tokens with which vision–language families mark pictures in a text, for models that are built by a recipe.

A pretrained model brings them with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardyard.data.multimodal.quirks import name_special_tokens
from shardyard.data.tokenizers.padding import with_padding
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.image_tokens import sees_with_pixtral, uses_own_processor
from shardyard.recipe.schema import Model, Recipe

# Name of the tokenizer's attribute → token. A configuration field such as image_token_id holds the id of image_token.
_DEFAULT = {"image_token": "<image>"}
_QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
_GLM = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
}
_IDEFICS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_TILES = {f"row_{row}_col_{column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
_IDEFICS3 = {**_IDEFICS, "global_image_token": "<global-img>", **_TILES}
_PIXTRAL = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
TOKENS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "exaone4_5", "qwen4_exp"),
        _QWEN,
    ),
    **dict.fromkeys(("gemma3", "t5gemma2", "gemma3n"), _GEMMA),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), _GLM),
    **dict.fromkeys(("idefics3", "smolvlm"), _IDEFICS3),
    **dict.fromkeys(("mistral3", "mistral_large4", "lighton_ocr"), _PIXTRAL),
    "idefics2": {**_IDEFICS, "image_boundary_token": "<fake_token_around_image>"},
    "internvl": {
        "image_token": "<IMG_CONTEXT>",
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
    "llava_onevision": {"image_token": "<image>", "video_token": "<video>"},
    "mllama": {"image_token": "<|image|>", "python_token": "<|python_tag|>"},
    # A picture is a sequence of 256 places; the last tokens name positions and segments in it.
    "paligemma": {
        "image_token": "<image>",
        **{f"loc{index:04}": f"<loc{index:04}>" for index in range(1024)},
        **{f"seg{index:03}": f"<seg{index:03}>" for index in range(128)},
    },
    "janus": {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    },
    "aya_vision": {
        "image_token": "<image>",
        "img_patch_token": "<|IMG_PATCH|>",
        "start_of_img_token": "<|START_OF_IMG|>",
        "end_of_img_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "tile_token": "TILE",
        "tile_global_token": "TILE_GLOBAL",
    },
    "paddleocr_vl": {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "vision_start_token": "<|IMAGE_START|>",
        "vision_end_token": "<|IMAGE_END|>",
    },
}
# How a picture stands in a text where it is not the image token alone.
_SHOWN = {
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    **dict.fromkeys(("gemma3", "t5gemma2", "gemma3n"), "<start_of_image>"),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), "<|begin_of_image|><|image|><|end_of_image|>"),
    "paddleocr_vl": "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
}
# Families whose processor puts the first token of a text itself.
_BEGIN_WITH_BOS = frozenset({"mllama", "paligemma"})


def tokens_of(family: str, config: Mapping[str, object]) -> Mapping[str, str]:
    """Name → token of a family."""
    return _PIXTRAL if sees_with_pixtral(family, config) else TOKENS.get(family, _DEFAULT)


def shown(family: str, config: Mapping[str, object]) -> str:
    """What stands for a picture in a text that the processor reads."""
    return _SHOWN.get(family, tokens_of(family, config)["image_token"])


def add_placeholders(tokenizer: Any, family: str, config: Mapping[str, object]) -> None:
    """Give a tokenizer the tokens that it lacks; those that it has, as the model's own tokenizer does, stay.

    PaliGemma and Mllama begin texts with the first token; a tokenizer without one begins them with its end token, as
    documents do.
    """
    names = {
        name: token
        for name, token in tokens_of(family, config).items()
        if not isinstance(getattr(tokenizer, name, None), str)
    }
    known = tokenizer.get_vocab()
    new = [token for token in dict.fromkeys(names.values()) if token not in known]
    if new:
        tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
    name_special_tokens(tokenizer, {name: token for name, token in names.items() if name.endswith("_token")})
    if family in _BEGIN_WITH_BOS and tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token


def model_tokenizer(recipe: Recipe) -> Any:
    """The recipe's tokenizer, with the tokens that it lacks and that rows or the model need: those that pad and end a
    text and, for a model whose own processor makes the rows, those that stand for pictures.

    Raises:
        DataError: the tokenizer does not exist.
    """
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.added_tokens)
    tokenizer = with_padding(tokenizer, recipe.objective, recipe.model.family)
    if own_processor_makes_rows(recipe) and not _has_placeholder(tokenizer, recipe.model):
        add_placeholders(tokenizer, recipe.model.family, recipe.model.config)
    return tokenizer


def own_processor_makes_rows(recipe: Recipe) -> bool:
    """Whether the objective's rows are those of the model's own processor."""
    return objective_spec(recipe.objective).rows == "image_answers" and uses_own_processor(recipe.model, recipe.image)


def _has_placeholder(tokenizer: Any, model: Model) -> bool:
    """Whether a pretrained model's own tokenizer marks pictures already, by whatever token."""
    named = isinstance(getattr(tokenizer, "image_token", None), str)
    return model.pretrained is not None and (
        named or tokens_of(model.family, model.config)["image_token"] in tokenizer.get_vocab()
    )


def placeholder_ids(tokenizer: Any, family: str, config: Mapping[str, object]) -> dict[str, int]:
    """Name of a configuration field without `_id` or `_index` → id: `image_token`, `boi_token`, …"""
    tokens = {name: token for name, token in tokens_of(family, config).items() if name.endswith("_token")}
    if family == "aya_vision":
        # Its image token stands for a whole picture in the text, and this one for a part of it in the model.
        tokens["image_token"] = tokens["img_patch_token"]
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in tokens.items()}
