"""The processor of a vision–language model: the pretrained model's own, or one of its class made for the model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from transformers.utils import cached_file

from shardyard.data.multimodal.build import arguments, build_processor, default_template, image_options
from shardyard.data.multimodal.classes import (
    CONFIG_FILE,
    OTHER_PARTS,
    image_processor_class,
    processor_class,
    processor_name,
    video_settings,
)
from shardyard.errors import DataError
from shardyard.recipe.image_tokens import sees_with_pixtral
from shardyard.recipe.schema import Image

_PICTURE_FILES = (CONFIG_FILE, "preprocessor_config.json")


def own_processor(family: str, config: Any, tokenizer: Any, image: Image, pretrained: str | None = None) -> Any:
    """The processor of a model for pictures and text, with the given tokenizer.

    Args:
        family: model type.
        config: of the model.
        tokenizer: with the family's placeholders.
        image: `size`, `mean`, `std` and `options` of the recipe take precedence over the processor's own.
        pretrained: folder, hub id or `id@revision` of the weights; None, or a place without a processor: one is built.

    Raises:
        DataError: the model has none that can be used here.
    """
    if tokenizer.pad_token is None:
        # Some processors pad the pictures or the texts of a single row.
        tokenizer.pad_token = tokenizer.eos_token
    saved = _saved(pretrained) if pretrained is not None else None
    if saved is None:
        return build_processor(family, config, tokenizer, image)
    pixtral = sees_with_pixtral(family, config.to_dict())
    name = processor_name(family, pixtral=pixtral)
    whole, pictures = processor_class(name), image_processor_class(family, pixtral=pixtral)
    settings = saved.get("image_processor", saved)
    overrides = {key: value for key, value in image_options(pictures, config, image).items() if _asked(key, image)}
    known = inspect.signature(whole.__init__).parameters
    parts = ("image_processor", "tokenizer", "chat_template", *OTHER_PARTS)
    # Older folders have no settings of the whole processor, which then follow from the configuration.
    given = {key: value for key, value in saved.items() if key in known and key not in parts}
    given = given or arguments(whole, config, image)
    try:
        image_processor = pictures.from_dict({**_plain(settings), **overrides})
        if family == "paligemma" and not hasattr(image_processor, "image_seq_length"):
            image_processor.image_seq_length = config.vision_config.num_image_tokens
        if "chat_template" in known:
            template = saved.get("chat_template") or tokenizer.chat_template
            given["chat_template"] = template or default_template(family, config)
        given |= {part: None for part in OTHER_PARTS if part in known}
        processor = whole(image_processor=image_processor, tokenizer=tokenizer, **given)
    except (TypeError, ValueError, AttributeError, ImportError, KeyError) as error:
        raise DataError(f"the processor of {pretrained} cannot be used here: {_first_line(error)}") from error
    processor.video_settings = saved.get("video_processor") or video_settings(family, image_processor.to_dict())
    return processor


def _asked(key: str, image: Image) -> bool:
    """Whether the recipe sets an argument of the image processor."""
    own = {"size": "size", "crop_size": "size", "image_mean": "mean", "image_std": "std"}.get(key)
    return key in image.options or (own is not None and getattr(image, own) != Image.model_fields[own].default)


def _plain(settings: object) -> dict[str, object]:
    """The settings of an image processor without the names of classes."""
    found = settings if isinstance(settings, dict) else {}
    return {key: value for key, value in found.items() if not key.endswith(("_type", "_class"))}


def _saved(pretrained: str) -> dict[str, object] | None:
    """The saved processor with its chat template; None if the place has none for pictures."""
    found: dict[str, object] = {}
    for name in reversed(_PICTURE_FILES):
        text = _read(pretrained, name)
        if text is not None:
            found |= json.loads(text)
    if not found:
        return None
    template = _read(pretrained, "chat_template.jinja")
    if template is None and (old := _read(pretrained, "chat_template.json")) is not None:
        template = json.loads(old).get("chat_template")
    video = _read(pretrained, "video_preprocessor_config.json")
    extra = {"chat_template": template, "video_processor": json.loads(video) if video is not None else None}
    return {**found, **{key: value for key, value in extra.items() if value is not None}}


def _read(pretrained: str, name: str) -> str | None:
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        file: str | None = str(folder / name) if (folder / name).is_file() else None
    else:
        hub_id, _, revision = pretrained.partition("@")
        try:
            file = cached_file(hub_id, name, revision=revision or None, _raise_exceptions_for_missing_entries=False)
        except (OSError, HFValidationError) as error:
            raise DataError(f"the processor of {pretrained} cannot be read: {_first_line(error)}") from error
    return Path(file).read_text(encoding="utf-8") if file is not None else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
