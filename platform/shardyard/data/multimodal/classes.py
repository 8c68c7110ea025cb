"""The processor classes of vision–language families, for pictures and text alone.

Many of transformers' processors also read video, and need torchvision for that. Pictures are prepared with Pillow, so
rows are the same on every machine, with torchvision or without.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from shardyard.data.multimodal.quirks import import_without_torchvision
from shardyard.errors import DataError
from shardyard.recipe.families import video_processor_name

CONFIG_FILE = "processor_config.json"
# Parts that a processor needs for pictures within text, and those for other inputs, which it does without.
_PARTS = ("image_processor", "tokenizer")
OTHER_PARTS = ("video_processor", "feature_extractor")
PIXTRAL = "PixtralProcessor"
# Families whose processor transformers does not list under their own name.
_ALIASES = {"shieldgemma2": "gemma3", "glmga": "glm46v", "qwen3_vl_moe": "qwen3_vl", "glm4v_moe": "glm4v"}
_VIDEO_ALIASES = {
    **_ALIASES,
    "qwen2_5_vl": "qwen2_vl",
    "exaone4_5": "qwen2_vl",
    "qwen3_5": "qwen3_vl",
    "qwen3_5_moe": "qwen3_vl",
    "qwen4_exp": "qwen3_vl",
}
_SUPPORTED = "choose another family, such as qwen2_vl, gemma3, idefics3 or llava."


def processor_name(family: str, *, pixtral: bool = False) -> str:
    """The name of the family's processor class.

    Raises:
        DataError: the family has none.
    """
    name = PIXTRAL if pixtral else PROCESSOR_MAPPING_NAMES.get(_ALIASES.get(family, family))
    if not isinstance(name, str):
        raise DataError(
            f"vision_language drives a model through its processor for pictures and text, and Shardyard knows of none "
            f"for {family}; {_SUPPORTED}"
        )
    return name


@cache
def processor_class(name: str) -> Any:
    """The processor class `name`, reduced to its image processor and tokenizer.

    Raises:
        DataError: the class needs a package that is missing, or a part besides pictures and text.
    """
    whole = _find(name)
    missing = [part for part in whole.get_attributes() if part not in (*_PARTS, *OTHER_PARTS)]
    if missing:
        raise DataError(f"vision_language does not prepare {missing[0]}, which {name} needs; {_SUPPORTED}")
    return _reduced(whole)


def _reduced(whole: Any) -> Any:
    parts = [part for part in whole.get_attributes() if part in _PARTS]

    class Reduced(whole):  # type: ignore[misc]
        """A processor that reads pictures and text, and is saved as the whole one."""

        # The saved settings of its video processor, for AutoProcessor where torchvision is available.
        video_settings: dict[str, object] | None = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return parts

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            # SmolVLM's asks its video processor for the number of frames, also where there is no video.
            return ProcessorMixin.apply_chat_template(self, *args, **kwargs)

        def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
            saved = super().save_pretrained(save_directory, **kwargs)
            if self.video_settings is not None:
                file = Path(save_directory) / CONFIG_FILE
                settings = {**json.loads(file.read_text(encoding="utf-8")), "video_processor": self.video_settings}
                file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            return saved

    # The name under which it is saved.
    Reduced.__name__ = Reduced.__qualname__ = whole.__name__
    return Reduced


def _find(name: str) -> Any:
    folder = next(kind for kind, known in PROCESSOR_MAPPING_NAMES.items() if known == name)
    module = "pixtral" if name == PIXTRAL else folder.replace("-", "_").replace(".", "_")
    try:
        return getattr(import_without_torchvision(f"transformers.models.{module}.processing_{module}"), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{name} cannot be imported here: {str(error).strip().splitlines()[0]}; install what it lacks, "
            f"or {_SUPPORTED}"
        ) from error


def image_processor_class(family: str, *, pixtral: bool = False) -> Any:
    """The family's image processor, with the Pillow backend.

    Raises:
        DataError: there is none with this backend.
    """
    backends: Any = IMAGE_PROCESSOR_MAPPING_NAMES.get("pixtral" if pixtral else _ALIASES.get(family, family)) or {}
    name = backends.get("pil")
    if name is None:
        found = f", and {family} has only one with torchvision" if backends else f", and {family} has none"
        raise DataError(f"vision_language prepares pictures with the Pillow backend of a family{found}; {_SUPPORTED}")
    return get_image_processor_class_from_name(name)


def video_settings(family: str, image_settings: dict[str, object]) -> dict[str, object] | None:
    """Settings of the family's video processor that go with those of its image processor; None if it has none."""
    name = video_processor_name(_VIDEO_ALIASES.get(family, family))
    if name is None:
        return None
    shared = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
    return {"video_processor_type": name, **{key: image_settings[key] for key in shared if key in image_settings}}
