"""stamps and stamps-es: images for children with descriptions in several languages, one of them spoken."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shardyard.data.datasets.audio import resample, wav
from shardyard.data.datasets.images import image, on_white_square, shrink
from shardyard.data.datasets.rows import SAMPLING_RATE, Converted, Row, mixed
from shardyard.data.datasets.splits import is_held_out, near_duplicates, words

SIZE = 96
HELD_OUT_PERCENT = 10.0
LANGUAGES = ("de", "es", "fr", "it", "ru")
# Five letters per second is slow and twenty-five fast: outside this range the recording is of another text.
LETTERS_PER_SECOND = (4.0, 25.0)
_LANGUAGE_LINE = re.compile(r"(\w+)\.utf8=(.+)")
_NOT_SPOKEN = re.compile(r"[\[\](){}<>@#$£€=\ufffd\d]")


def convert_images(folders: Mapping[str, Path]) -> Converted:
    """PNG stamps with their names; SVG drawings and stamps without a name in each language are excluded."""
    root = _root(folders)
    texts = {
        path.with_suffix(""): read_texts(path.read_text("utf-8", "replace")) for path in sorted(root.rglob("*.txt"))
    }
    complete = [stem for stem, text in texts.items() if text.keys() >= {"en", *LANGUAGES}]
    drawn = [stem for stem in complete if stem.with_suffix(".png").exists()]
    rows = [_image_row(stem, root, texts[stem]) for stem in drawn]
    left_out = {"no name in a language": len(texts) - len(complete), "no PNG": len(complete) - len(drawn)}
    return Converted(_split(rows, [str(row["text"]) for row in rows]), left_out=left_out)


def convert_speech(folders: Mapping[str, Path], *, language: str = "es") -> Converted:
    """The spoken descriptions in one language with their text."""
    soundfile = importlib.import_module("soundfile")
    root = _root(folders)
    rows: list[Row] = []
    left_out = {"no text, or signs and figures in it": 0, "length unlike the text": 0}
    for path in sorted(root.rglob(f"*_desc_{language}.ogg")):
        stem = path.with_name(path.name.removesuffix(f"_desc_{language}.ogg"))
        described = stem.with_suffix(".txt")
        text = read_texts(described.read_text("utf-8", "replace")).get(language, "") if described.exists() else ""
        if not text or _NOT_SPOKEN.search(text):
            left_out["no text, or signs and figures in it"] += 1
            continue
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
        heard = trim(resample(samples.mean(axis=1).astype(np.int16), rate, SAMPLING_RATE))
        slow, fast = (len(heard) / SAMPLING_RATE * bound for bound in LETTERS_PER_SECOND)
        if not slow <= sum(map(len, words(text))) <= fast:
            left_out["length unlike the text"] += 1
            continue
        id_ = stem.relative_to(root).as_posix()
        rows.append({"audio": {"bytes": wav(heard), "path": f"{stem.name}.wav"}, "text": text, "id": id_})
    return Converted(_split(rows, [str(row["text"]) for row in rows]), left_out=left_out)


def read_texts(text: str) -> dict[str, str]:
    """Descriptions by language: the first line is English, the others are `de.utf8=…`."""
    lines = text.splitlines()
    matches = (_LANGUAGE_LINE.fullmatch(line.strip()) for line in lines[1:])
    found = {match[1]: " ".join(match[2].split()) for match in matches if match}
    return {"en": " ".join(lines[0].split()), **found} if lines and lines[0].strip() else found


def trim(samples: np.ndarray[tuple[int], np.dtype[np.int16]]) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Trim the silence at both ends to a tenth of a second."""
    (loud,) = np.nonzero(np.abs(samples.astype(np.int32)) > 500)
    if not len(loud):
        return samples[:0]
    margin = SAMPLING_RATE // 10
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def _root(folders: Mapping[str, Path]) -> Path:
    root = folders["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps"
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root.name}")
    return root


def _image_row(stem: Path, root: Path, texts: Mapping[str, str]) -> Row:
    pillow = importlib.import_module("PIL.Image")
    with pillow.open(io.BytesIO(stem.with_suffix(".png").read_bytes())) as opened:
        square = on_white_square(np.asarray(opened.convert("RGBA")), least=SIZE)
    return {
        "image": image(shrink(square, SIZE), f"{stem.name}.png"),
        "text": texts["en"],
        **{f"text_{language}": texts[language] for language in LANGUAGES},
        "group": stem.relative_to(root).parts[0],
        "id": stem.relative_to(root).as_posix(),
    }


def _split(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, list[Row]]:
    """Split the rows; stamps with the same or almost the same description are in the same split."""
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row, key in zip(rows, near_duplicates(texts), strict=True):
        splits["validation" if is_held_out(key, HELD_OUT_PERCENT) else "train"].append(row)
    return {split: mixed(found, split) for split, found in splits.items()}
