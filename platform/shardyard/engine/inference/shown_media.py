"""Pictures and recordings of examples, small enough for a page: as data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import soundfile

from shardyard.data.media.audio import RATE, read_audio
from shardyard.data.media.images import decoded
from shardyard.errors import UnusableRowError
from shardyard.recipe.schema import Image

MOST_PIXELS = 240
MOST_PICTURES = 4
MOST_SECONDS = 12


def pictures_of(example: Any, settings: Image) -> list[str]:
    """The first pictures of an example as PNG, at most 240 pixels wide and high."""
    found: list[str] = []
    for value in _pictures(example):
        if len(found) == MOST_PICTURES:
            break
        try:
            picture = decoded(value, "RGB", settings)
        except UnusableRowError:
            continue
        picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
        content = io.BytesIO()
        picture.save(content, "PNG")
        found.append(_url("image/png", content.getvalue()))
    return found


def sounds_of(example: Any) -> list[str]:
    """The recording of an example as WAV, at most its first 12 seconds."""
    if not isinstance(example, Mapping) or example.get("audio") is None:
        return []
    try:
        samples = read_audio(example["audio"])[: RATE * MOST_SECONDS]
    except UnusableRowError:
        return []
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="WAV", subtype="PCM_16")
    return [_url("audio/wav", content.getvalue())]


def _pictures(value: Any) -> Iterator[Any]:
    """The pictures of an example: of its roles, and of the parts of its messages."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in ("image", "image_url") and not isinstance(inner, list):
                yield inner.get("url") if name == "image_url" and isinstance(inner, Mapping) else inner
            elif name == "images" and isinstance(inner, list):
                yield from inner
            elif isinstance(inner, Mapping | list):
                yield from _pictures(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pictures(inner)


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
