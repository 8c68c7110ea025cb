"""Resolved recipes of earlier versions: fields whose default is another than what these runs did."""

from __future__ import annotations

from typing import Any


def complete(fields: Any) -> None:
    """Add to the fields of a resolved.yaml, which has every default of its time, what its run did before a field
    existed."""
    data = fields.get("data") if isinstance(fields, dict) else None
    if isinstance(data, dict):
        data.setdefault("special_tokens", "end")
        for source in (*(data.get("train") or ()), *(data.get("validation") or ())):
            if isinstance(source, dict):
                source.setdefault("documents", "file")
    model = fields.get("model") if isinstance(fields, dict) else None
    if isinstance(model, dict):
        model.setdefault("logits_chunk", 0)
    image = fields.get("image") if isinstance(fields, dict) else None
    if isinstance(image, dict):
        image.setdefault("background", None)
    audio = fields.get("audio") if isinstance(fields, dict) else None
    if isinstance(audio, dict):
        audio.setdefault("resampler", "fft")
        audio.setdefault("too_long", "beginning" if _is_whisper(fields.get("model")) else "unusable")


def _is_whisper(model: Any) -> bool:
    return isinstance(model, dict) and model.get("family") == "whisper"
