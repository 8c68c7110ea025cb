"""audio_classification in small: the class of a recording is its first tone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.families.sound import fields_of, write_data

__all__ = ["recipe_fields", "write_data"]


def recipe_fields(data: Path) -> dict[str, Any]:
    """An encoder that reads samples without a mask."""
    return fields_of(data, "audio_classification", "wav2vec2", num_labels=4, classifier_proj_size=8)
