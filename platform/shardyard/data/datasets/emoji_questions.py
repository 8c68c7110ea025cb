"""emoji-questions: questions about the images of emoji-captions, with their answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from shardyard.data.datasets import emoji
from shardyard.data.datasets.rows import Converted, Row, mixed

_NAME = ("What is shown?", "What is in the picture?", "Name what you see.")
_GROUP = ("Which group of emoji does it belong to?", "What kind of emoji is it?")
_CHECK = "Is this “{name}”?"


def convert(folders: Mapping[str, Path]) -> Converted:
    """Three questions per image: its name, its group, and a yes/no question, with "yes" every other time."""
    captions = emoji.convert(folders)
    splits = {split: mixed(_rows(rows), split) for split, rows in captions.splits.items()}
    return Converted(splits, left_out=captions.left_out)


def _rows(captions: Sequence[Row]) -> list[Row]:
    rows: list[Row] = []
    for caption in captions:
        number = int.from_bytes(hashlib.sha256(str(caption["hexcode"]).encode()).digest()[:8], "big")
        name, other = str(caption["text"]), str(captions[number // 2 % len(captions)]["text"])
        is_so = number % 2 == 0 or other == name
        asked = (
            (_NAME[number % len(_NAME)], sentence(name)),
            (_GROUP[number % len(_GROUP)], sentence(str(caption["group"]))),
            (_CHECK.format(name=_phrase(name if is_so else other)), "Yes." if is_so else f"No. {sentence(name)}"),
        )
        for prompt, response in asked:
            rows.append({"image": caption["image"], "prompt": prompt, "response": response})
    return rows


def sentence(name: str) -> str:
    """`red apple` → `Red apple.`, `flag: Italy` → `Flag of Italy.`"""
    text = _phrase(name)
    return f"{text[0].upper()}{text[1:]}."


def _phrase(name: str) -> str:
    return name.replace("flag: ", "flag of ")
