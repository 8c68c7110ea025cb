"""The files that a path names, and what their names say about their content. Pure."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

FileKind = Literal["parquet", "json", "csv", "text", "arrow", "tar", "picture", "sound", "tokens"]

# Suffixes of files of rows or texts.
ROWS: dict[str, FileKind] = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".arrow": "arrow",
    ".tar": "tar",
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", ".jp2")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".m4a")
# Token ids: of OLMo-core, of Megatron, nanoGPT and llm.c, and of datatrove and nanotron.
TOKENS = (".npy", ".bin", ".ds")
# Folders beside a file of rows in which the pictures and recordings may lie that it names: Common Voice, Flickr, COCO.
MEDIA_FOLDERS = ("clips", "wavs", "images", "Images", "train2014", "train2017", "val2014", "val2017")
# Compressions that can be read of `json`, `csv` and `text`.
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_KINDS: dict[str, FileKind] = {
    **ROWS,
    **dict.fromkeys(PICTURES, "picture"),
    **dict.fromkeys(SOUNDS, "sound"),
    **dict.fromkeys(TOKENS, "tokens"),
}
_COMPRESSIBLE = ("json", "csv", "text")


# The data card that `shardyard data build` writes beside the files of rows.
CARD = "data-card.json"


def suffixes() -> str:
    """The suffixes of files of rows, for messages."""
    return ", ".join(ROWS)


def compression(path: str) -> str | None:
    """`.gz`, `.zst`, … if the file is compressed."""
    name = bare(path).lower()
    return next((end for end in COMPRESSED if name.endswith(end)), None)


def bare(path: str) -> str:
    """A path or URL without a query."""
    return path.split("?")[0] if "://" in path else path


def suffix(path: str) -> str:
    """The suffix without that of a compression, in lower case."""
    name = bare(path).lower()
    return Path(name.removesuffix(compression(path) or "")).suffix


def file_kind(path: str) -> FileKind | None:
    """What a file holds, by its name; None if that is not known."""
    kind = _KINDS.get(suffix(path))
    return kind if kind in _COMPRESSIBLE or compression(path) is None else None


def is_table(path: str) -> bool:
    """Whether the name is that of a file of rows or texts."""
    return suffix(path) in ROWS and file_kind(path) is not None and Path(bare(path)).name != CARD


def matching(path: str) -> list[str]:
    """Existing files and folders that a path or pattern names, sorted.

    Names that exist are taken as they are, so brackets in them are no pattern: `data [v2]/*.jsonl`.
    """
    if "://" in path:
        return []
    whole = os.path.expanduser(path)
    if os.path.lexists(whole):
        return [whole]
    parts = Path(whole).parts
    root = ""
    while parts and os.path.exists(os.path.join(root, parts[0])):
        root, parts = os.path.join(root, parts[0]), parts[1:]
    for pattern in (parts, [part.replace("[", "[[]") for part in parts]):
        if found := glob.glob(os.path.join(glob.escape(root), *pattern), recursive=True):
            return sorted(found)
    return []


def files_below(folder: str) -> Iterator[str]:
    """All files below a folder in a fixed order, without hidden ones."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.join(root, name)
