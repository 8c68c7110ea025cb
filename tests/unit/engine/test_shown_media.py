"""Pictures and recordings of examples, as data URLs for a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from shardyard.engine.inference.shown_media import MOST_PICTURES, MOST_PIXELS, MOST_SECONDS, pictures_of, sounds_of
from shardyard.recipe.schema import Image as Settings


def encoded(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (250, 10, 20)).save(content, "PNG")
    return content.getvalue()


def content_of(url: str, kind: str) -> io.BytesIO:
    head, _, content = url.partition(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(content))


def test_pictures_of_roles_and_messages_are_small() -> None:
    picture = {"bytes": encoded(900, 300), "path": None}
    (url,) = pictures_of({"image": picture, "text": "wide"}, Settings())
    shown = Image.open(content_of(url, "image/png"))
    assert (shown.size, shown.getpixel((3, 3))) == ((MOST_PIXELS, MOST_PIXELS // 3), (250, 10, 20))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": parts}]
    assert len(pictures_of({"messages": messages}, Settings())) == 1
    assert len(pictures_of({"images": [picture] * 9}, Settings())) == MOST_PICTURES
    assert pictures_of({"image": {"bytes": b"none", "path": None}}, Settings()) == []
    assert pictures_of("a text", Settings()) == []


def test_the_beginning_of_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(8000 * 20, 0.5, np.float32), 8000)
    (url,) = sounds_of({"audio": {"bytes": None, "path": str(path)}, "text": "x"})
    samples, rate = soundfile.read(content_of(url, "audio/wav"))
    assert len(samples) == rate * MOST_SECONDS
    assert abs(float(np.median(samples)) - 0.5) < 0.01
    assert sounds_of({"audio": {"bytes": b"none", "path": None}}) == []
    assert sounds_of({"text": "x"}) == sounds_of("x") == []
