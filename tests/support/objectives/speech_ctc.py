"""speech_ctc in small: tones are letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.families.sound import fields_of, write_data

__all__ = ["recipe_fields", "write_data"]


def recipe_fields(data: Path) -> dict[str, Any]:
    """A conformer that reads frames with a mask."""
    return fields_of(data, "speech_ctc", "wav2vec2-bert")
