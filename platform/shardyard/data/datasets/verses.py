"""verses-en-es: the verses that occur in both an English and a Spanish Bible."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardyard.data.datasets.alignment import moved
from shardyard.data.datasets.rows import Converted, Row, mixed
from shardyard.data.datasets.splits import words
from shardyard.data.datasets.sword import read_verses

# Books that do not retell others, so that training contains no parallel passages.
HELD_OUT_BOOKS = frozenset(("Ruth", "Esth", "Eccl", "Hos", "Jonah", "Gal", "Phil", "Jas"))
# Beyond this ratio of lengths, one side contains more or less of the passage than the other.
MAX_LENGTH_RATIO = 2.0


def convert(folders: Mapping[str, Path]) -> Converted:
    """Pairs of verses with the same reference, each English or Spanish sentence once."""
    source, target = (_module(folders[name]) for name in ("sword-text-web", "sword-text-sparv"))
    shared = [reference for reference in source if reference in target]
    left_out = {
        "only in one of the two": len(source.keys() ^ target.keys()),
        "of another numbering": 0,
        "repeated": 0,
        "unlike in length": 0,
    }
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    seen: set[str] = set()
    shifted = moved(source, target)
    for reference in shared:
        pair = source[reference], target[reference]
        keys = {" ".join(words(text)) for text in pair}
        if reference in shifted:
            left_out["of another numbering"] += 1
        elif keys & seen:
            left_out["repeated"] += 1
        elif max(map(len, pair)) > MAX_LENGTH_RATIO * (min(map(len, pair)) + 20):
            left_out["unlike in length"] += 1
        else:
            book = reference.partition(".")[0]
            row = {"source": pair[0], "target": pair[1], "book": book, "reference": reference}
            splits["validation" if book in HELD_OUT_BOOKS else "train"].append(row)
        seen |= keys
    return Converted({split: mixed(rows, split) for split, rows in splits.items()}, left_out=left_out)


def _module(folder: Path) -> dict[str, str]:
    (index,) = folder.glob("usr/share/sword/modules/texts/ztext/*/nt.bzv")
    return read_verses(index.parent)
