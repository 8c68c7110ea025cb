"""Processors for models that are built by a recipe: sized for the model's configuration.

S: height and width of a picture or tile, P: height and width of a patch
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from shardyard.data.multimodal.classes import (
    OTHER_PARTS,
    image_processor_class,
    processor_class,
    processor_name,
    video_settings,
)
from shardyard.data.multimodal.placeholders import shown
from shardyard.errors import DataError
from shardyard.recipe.image_tokens import has_class_token, sees_with_pixtral
from shardyard.recipe.schema import Image

# Above this, the edges of a size are not lengths but the smallest and largest number of pixels (Qwen2-VL).
_LONGEST_LENGTH = 10_000
# Idefics 3 reads a picture as tiles, at most this many along an edge.
_TILES_ALONG = 4
_MESSAGES = (
    "{%- if bos_token %}{{ bos_token }}{% endif -%}"
    "{%- for message in messages -%}"
    "{{- message['role'] | capitalize }}: "
    "{%- if message['content'] is string %} {{ message['content'] }}"
    "{%- else %} {% for part in message['content'] -%}"
    "{%- if part['type'] == 'image' %}PICTURE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif -%}{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}Assistant:{% endif -%}"
)


def build_processor(family: str, config: Any, tokenizer: Any, image: Image) -> Any:
    """The family's processor for a configuration, with a tokenizer that has the family's placeholders.

    The chat template is the tokenizer's, else roles as words, one turn per line.

    Raises:
        DataError: the family has no processor for pictures and text, or it refuses these settings.
    """
    pixtral = sees_with_pixtral(family, config.to_dict())
    whole = processor_class(processor_name(family, pixtral=pixtral))
    pictures = image_processor_class(family, pixtral=pixtral)
    try:
        image_processor = pictures(**image_options(pictures, config, image))
        given = arguments(whole, config, image)
        if family == "paligemma":
            image_processor.image_seq_length = _patches(config, image)
        known = inspect.signature(whole.__init__).parameters
        if "chat_template" in known:
            given["chat_template"] = tokenizer.chat_template or default_template(family, config)
        given |= {name: None for name in OTHER_PARTS if name in known}
        processor = whole(image_processor=image_processor, tokenizer=tokenizer, **given)
    except (TypeError, ValueError, AttributeError, ImportError, KeyError) as error:
        raise DataError(f"the processor of {family} cannot be made for this model: {_first_line(error)}") from error
    processor.video_settings = video_settings(family, image_processor.to_dict())
    return processor


def default_template(family: str, config: Any) -> str:
    """Roles as words, one turn per line, with the family's placeholders."""
    return _MESSAGES.replace("PICTURE", shown(family, config.to_dict()))


def image_options(pictures: Any, config: Any, image: Image) -> dict[str, object]:
    """Arguments of an image processor class for a configuration; `image.options` takes precedence."""
    vision = _vision(config)
    found: dict[str, object] = _sizes(pictures, vision, image)
    patch = getattr(vision, "patch_size", None)
    if patch is not None and getattr(pictures, "patch_size", None) is not None:
        edge = _edge(patch)
        found["patch_size"] = {"height": edge, "width": edge} if isinstance(pictures.patch_size, Mapping) else edge
    for name, values in _SAME.items():
        value = next((got for where in (config, vision) for key in values if (got := getattr(where, key, None))), None)
        if value is not None and getattr(pictures, name, None) is not None:
            found[name] = value
    for name, own in (("image_mean", "mean"), ("image_std", "std")):
        values = getattr(image, own)
        if values != Image.model_fields[own].default:
            found[name] = values if len(values) > 1 else values * 3
    return {**found, **image.options}


# Argument of an image processor → fields of the configuration that hold its value.
_SAME: Mapping[str, tuple[str, ...]] = {
    "merge_size": ("spatial_merge_size",),
    "temporal_patch_size": ("temporal_patch_size",),
    "image_grid_pinpoints": ("image_grid_pinpoints",),
    "max_image_tiles": ("max_num_tiles",),
}


def _sizes(pictures: Any, vision: Any, image: Image) -> dict[str, object]:
    """`size` and what depends on it, in the form in which the class has its default."""
    default = dict(getattr(pictures, "size", None) or {})
    own = getattr(vision, "image_size", None)
    edge = image.size or (_edge(own) if own else None)
    if default.keys() == {"shortest_edge", "longest_edge"} and default["longest_edge"] > _LONGEST_LENGTH:
        if image.size is None:
            return {}
        most = image.size**2
        return {"size": {"shortest_edge": min(default["shortest_edge"], most), "longest_edge": most}}
    if edge is None or not default:
        return {}
    if getattr(pictures, "max_image_size", None):
        tile = _edge(own) if own else edge
        return {"size": {"longest_edge": image.size or _TILES_ALONG * tile}, "max_image_size": {"longest_edge": tile}}
    if default.keys() == {"shortest_edge", "longest_edge"}:
        shortest = max(1, edge * default["shortest_edge"] // default["longest_edge"])
        return {"size": {"shortest_edge": shortest, "longest_edge": edge}}
    found: dict[str, object] = {"size": dict.fromkeys(default, edge)}
    if getattr(pictures, "crop_size", None):
        found["crop_size"] = {"height": edge, "width": edge}
    return found


def arguments(whole: Any, config: Any, image: Image) -> dict[str, object]:
    """Arguments of the processor class besides its parts."""
    known = inspect.signature(whole.__init__).parameters
    return {name: value(config, image) for name, value in _ARGUMENTS.items() if name in known}


def _patches(config: Any, image: Image) -> int:
    """(S / P)²."""
    vision = _vision(config)
    return int((image.size or _edge(vision.image_size)) // _edge(vision.patch_size)) ** 2


def _sequence(config: Any, image: Image) -> int:
    """Positions of a picture or tile in the text."""
    given = getattr(config, "mm_tokens_per_image", None)
    if given is not None:
        return int(given)
    latents = getattr(getattr(config, "perceiver_config", None), "resampler_n_latents", None)
    if latents is not None:
        return int(latents)
    patches = _patches(config, image.model_copy(update={"size": None}))
    if getattr(config, "scale_factor", None):
        return int(patches / config.scale_factor**2)
    return int(patches * float(getattr(config, "downsample_ratio", 1.0)) ** 2)


_ARGUMENTS: Mapping[str, Callable[[Any, Image], object]] = {
    "patch_size": lambda config, image: _edge(getattr(_vision(config), "patch_size", 16)),
    "img_size": lambda config, image: _edge(_vision(config).image_size),
    "downsample_factor": lambda config, image: getattr(config, "downsample_factor", 1),
    "spatial_merge_size": lambda config, image: getattr(config, "spatial_merge_size", 1),
    "vision_feature_select_strategy": lambda config, image: getattr(
        config, "vision_feature_select_strategy", "default"
    ),
    "num_additional_image_tokens": lambda config, image: int(has_class_token(_vision(config).model_type)),
    "image_seq_length": _sequence,
    "image_seq_len": _sequence,
    "num_image_tokens": _sequence,
    "num_query_tokens": lambda config, image: getattr(config, "num_query_tokens", None),
    "vision_aspect_ratio": lambda config, image: getattr(config, "vision_aspect_ratio", "anyres_max_9"),
}


def _vision(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config


def _edge(size: Any) -> int:
    """The height of a size: a number, [height, width], or {height, width}."""
    if isinstance(size, Mapping):
        return int(next(iter(size.values())))
    return int(size if isinstance(size, int) else size[0])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
