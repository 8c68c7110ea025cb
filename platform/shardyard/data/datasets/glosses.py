"""wordnet-glosses: definitions of words, classified by WordNet's lexicographer files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shardyard.data.datasets.rows import Converted, Row, mixed
from shardyard.data.datasets.splits import is_held_out, words

HELD_OUT_PERCENT = 5.0
# Indexed by the numbers in the data files; from the manual page lexnames(5WN).
CLASSES = (
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
)
_PARTS = ("noun", "verb", "adj", "adv")
# A line: offset, class, part of speech, count of words (hexadecimal), first word, … | gloss
_LINE = re.compile(r"\d{8} (\d\d) \w [0-9a-f]{2} (\S+) .*? \| (.+)")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


def convert(folders: Mapping[str, Path]) -> Converted:
    """One row per synset, definitions with their examples."""
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    folder = folders["wordnet-base"] / "usr/share/wordnet"
    for part in _PARTS:
        for row in read_glosses((folder / f"data.{part}").read_text(encoding="utf-8"), part):
            definition = " ".join(words(str(row["text"]).partition('; "')[0]))
            splits["validation" if is_held_out(definition, HELD_OUT_PERCENT) else "train"].append(row)
    return Converted({split: mixed(rows, split) for split, rows in splits.items()}, {"label": CLASSES})


def read_glosses(text: str, part: str) -> Iterator[Row]:
    """The synsets of a data file of WordNet; lines that begin with spaces are its licence."""
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            word = _MARKER.sub("", match[2]).replace("_", " ")
            yield {"text": " ".join(match[3].split()), "label": int(match[1]), "word": word, "pos": part}
