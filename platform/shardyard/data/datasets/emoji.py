"""emoji-captions: the images of a colour font with the names of the emoji in several languages."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from shardyard.data.datasets.images import image, on_white_square, shrink
from shardyard.data.datasets.rows import Converted, Row, mixed
from shardyard.data.datasets.splits import is_held_out

SIZE = 64
HELD_OUT_PERCENT = 10.0
LANGUAGES = ("en", "de", "es", "fr", "it", "ru")
_LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.+)")
_SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
_HAIR = frozenset(range(0x1F9B0, 0x1F9B4))
_PRESENTATION, _JOINER = 0xFE0F, 0x200D
_SIGNS = frozenset((0x2640, 0x2642))  # female, male
# Man, woman, boy, girl, old man, old woman and their neutral forms count as one person.
_PERSON = 0x1F9D1
_PERSONS = frozenset((0x1F468, 0x1F469, 0x1F466, 0x1F467, 0x1F474, 0x1F475, 0x1F9D2, 0x1F9D3, _PERSON))


@dataclass(frozen=True)
class Emoji:
    codes: tuple[int, ...]
    name: str
    group: str


def convert(folders: Mapping[str, Path]) -> Converted:
    """Emoji with an image and a name in each language; those with a skin tone are excluded."""
    listed = list(read_list((folders["unicode-data"] / "usr/share/unicode/emoji/emoji-test.txt").read_text("utf-8")))
    plain = [emoji for emoji in listed if not _SKIN_TONES & set(emoji.codes)]
    names = {language: read_names(folders["unicode-cldr-core"], language) for language in LANGUAGES}
    (font,) = folders["fonts-noto-color-emoji"].rglob("NotoColorEmoji.ttf")
    images = read_images(font, [emoji.codes for emoji in plain])
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    left_out = {"skin tones": len(listed) - len(plain), "no image": 0, "no name in a language": 0}
    for emoji in plain:
        called = {language: names[language].get(bare(emoji.codes)) for language in LANGUAGES}
        if emoji.codes not in images:
            left_out["no image"] += 1
        elif not all(called.values()):
            left_out["no name in a language"] += 1
        else:
            row = _row(emoji, called, images[emoji.codes])
            splits["validation" if is_held_out(concept(emoji.codes), HELD_OUT_PERCENT) else "train"].append(row)
    return Converted({split: mixed(rows, split) for split, rows in splits.items()}, left_out=left_out)


def _row(emoji: Emoji, called: Mapping[str, str | None], pixels: np.ndarray[Any, Any]) -> Row:
    hexcode = "-".join(f"{code:X}" for code in emoji.codes)
    names = {f"text_{language}": called[language] for language in LANGUAGES if language != "en"}
    return {
        "image": image(pixels, f"{hexcode}.png"),
        "text": called["en"],
        **names,
        "group": emoji.group,
        "hexcode": hexcode,
    }


def read_list(text: str) -> Iterator[Emoji]:
    """The fully qualified emoji of emoji-test.txt."""
    group = ""
    for line in text.splitlines():
        group = line.removeprefix("# group: ") if line.startswith("# group: ") else group
        match = _LINE.match(line)
        if match:
            yield Emoji(tuple(int(code, 16) for code in match[1].split()), match[2], group)


def read_names(folder: Path, language: str) -> dict[tuple[int, ...], str]:
    """The names of CLDR by code points without presentation selectors."""
    common = folder / "usr/share/unicode/cldr/common"
    names = {}
    for part in ("annotations", "annotationsDerived"):
        for element in ElementTree.parse(common / part / f"{language}.xml").iter("annotation"):
            if element.get("type") == "tts" and element.text:
                names[bare(tuple(map(ord, element.get("cp", ""))))] = " ".join(element.text.split())
    return names


def bare(codes: tuple[int, ...]) -> tuple[int, ...]:
    """The code points without those that only select the colour image."""
    return tuple(code for code in codes if code != _PRESENTATION)


def concept(codes: tuple[int, ...]) -> str:
    """A key that is equal for all variants of an emoji: without gender, age, hair and presentation."""
    kept = [code for code in bare(codes) if code not in _SIGNS | _HAIR and code != _JOINER] or list(codes)
    return "-".join(f"{_PERSON if code in _PERSONS else code:X}" for code in kept)


def read_images(font: Path, sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray[Any, Any]]:
    """Pixels (64, 64, 3) on white of each sequence that has one image in the font (tables CBDT and GSUB)."""
    pil = importlib.import_module("PIL.Image")
    with importlib.import_module("fontTools.ttLib").TTFont(font, lazy=True) as opened:
        characters = opened.getBestCmap()
        ligatures = _ligatures(opened["GSUB"].table)
        bitmaps = opened["CBDT"].strikeData[0]
        found = {}
        for codes in sequences:
            glyphs = tuple(characters.get(code, "") for code in bare(codes))
            glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(glyphs)
            if glyph in bitmaps:
                image = pil.open(io.BytesIO(bitmaps[glyph].imageData)).convert("RGBA")
                found[codes] = shrink(on_white_square(np.asarray(image)), SIZE)
    return found


def _ligatures(table: Any) -> dict[tuple[str, ...], str]:
    """Glyph sequence → the glyph that replaces it."""
    subtables = [sub for lookup in table.LookupList.Lookup if lookup.LookupType == 4 for sub in lookup.SubTable]
    return {
        (first, *ligature.Component): ligature.LigGlyph
        for subtable in subtables
        for first, ligatures in subtable.ligatures.items()
        for ligature in ligatures
    }
