"""Small configurations that are written by hand: those of models whose parts and processor have to fit each other."""

from __future__ import annotations

from typing import Any

from breadth.narrow import Narrow
from shardyard.recipe.families import config_fields
from support.families.dual_encoders import CONFIGS
from support.families.masked_pictures import CONFIGS as MASKED
from support.families.sound import ENCODERS
from support.families.speech import CONFIGS as SPEECH
from support.objectives.audio_contrastive import CONFIG as CLAP
from support.objectives.masked_image import MAE
from support.objectives.picture_families import FAMILIES, IMAGES

_COMPUTED = "num_feat_extract_layers"  # the length of other lists: no field of a recipe
_MISTRAL = FAMILIES["mistral3"]
# transformers fails on a single picture of a single token.
_SMALLER_PATCHES = {**_MISTRAL, "vision_config": {**_MISTRAL["vision_config"], "patch_size": 4}}
_CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "audio_contrastive": {"clap": CLAP},
    "contrastive": CONFIGS,
    "masked_image": {**MASKED, "vit_mae": MAE},
    "vision_language": {**FAMILIES, "mistral3": _SMALLER_PATCHES},
    "speech_ctc": ENCODERS,
    "speech_to_text": SPEECH,
    "audio_classification": {name: {**config, "classifier_proj_size": 8} for name, config in ENCODERS.items()},
}
# Families that take tokenizers with particular tokens alone: one for padding, or one for padding whose id is 0.
TOKENIZERS = {"altclip": "unigram-en-es-8k", "prophetnet": "wordpiece-docs-4k"}
_SECTIONS: dict[str, dict[str, Any]] = {
    "contrastive": {"data": {"sequence_length": 48}},
    "vision_language": {"data": {"sequence_length": 256}},
    # Joined recordings, a second loss and masks are those of Whisper.
    "speech_to_text": {
        "audio": {"join": 1, "ctc": 0.0, "time_masks": 0, "frequency_masks": 0, "speed": 0.0, "plain_text": False}
    },
}


def by_hand(objective: str, family: str) -> Narrow | None:
    """The configuration of a family under an objective, with which a test compares its loss with transformers'."""
    config = _CONFIGS.get(objective, {}).get(family)
    if config is None:
        return None
    sections = {**_SECTIONS.get(objective, {})}
    if objective == "vision_language":
        sections["image"] = IMAGES.get(family, {})
    known = config_fields(family)
    names = config.keys() - {_COMPUTED} if known is None else (config.keys() & known.names) - {_COMPUTED}
    return Narrow({name: value for name, value in config.items() if name in names}, sections=sections)
