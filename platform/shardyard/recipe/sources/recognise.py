"""What local data is, by the names of its files: rows, texts, folders of pictures, Common Voice, … Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from shardyard.errors import DataError
from shardyard.recipe.sources.files import FileKind, file_kind, files_below, is_table, matching, suffixes
from shardyard.recipe.sources.tokens import MANIFEST, is_token_set

LayoutName = Literal[
    "rows",
    "texts",
    "ImageFolder",
    "AudioFolder",
    "Common Voice",
    "LibriSpeech",
    "WebDataset",
    "Arrow",
    "tokens",
    "tokenised",
]

# Folders and files of a split, as data sets name them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
METADATA = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_BY_KIND: dict[FileKind, LayoutName] = {
    "text": "texts",
    "tar": "WebDataset",
    "arrow": "Arrow",
    "picture": "ImageFolder",
    "sound": "AudioFolder",
    "tokens": "tokens",
}
TRANSCRIPTS = ".trans.txt"


@dataclass(frozen=True)
class Recognised:
    """Local data of one split.

    layout: what it is. kind: what its files hold. files: what is read, for folders of pictures and recordings these.
    root: the folder that was given, None for files. splits: the splits that the folder has; empty if it has none.
    metadata: a file beside pictures or recordings with a row for each.
    """

    layout: LayoutName
    kind: FileKind
    files: tuple[str, ...]
    root: str | None = None
    splits: tuple[str, ...] = ()
    metadata: str | None = None


def recognise(path: str, split: str) -> Recognised | None:
    """The data that a local path or pattern names; None if nothing is there.

    Raises:
        DataError: there are files, but none that can be read, or no such split.
    """
    found = matching(path)
    if len(found) == 1 and os.path.isdir(found[0]):
        return _folder(found[0], split)
    files = [file for match in found for file in (files_below(match) if os.path.isdir(match) else (match,))]
    if not files:
        return None
    return _of_files(path, files)


def _of_files(name: str, files: Sequence[str]) -> Recognised:
    known = [file for file in files if file_kind(file) is not None]
    if not known:
        raise DataError(f"{name}: files end in {suffixes()}, those of rows each with .gz or .zst after it or not.")
    kind = one_kind(name, known)
    return Recognised(_BY_KIND.get(kind, "rows"), kind, tuple(known))


def one_kind(name: str, files: Iterable[str]) -> FileKind:
    """The only kind of some files.

    Raises:
        DataError: there are several.
    """
    kinds = sorted({str(file_kind(file)) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{name} mixes files of several kinds ({', '.join(kinds)}); name one kind, as in {name}/*.jsonl."
        )
    return kinds[0]  # type: ignore[return-value]


def _folder(folder: str, split: str) -> Recognised:
    names = set(os.listdir(folder))
    if MANIFEST in names and is_token_set(folder):
        return Recognised("tokenised", "tokens", (os.path.join(folder, MANIFEST),), folder)
    if "dataset_dict.json" in names:
        splits = tuple(name for name in sorted(names) if os.path.isfile(os.path.join(folder, name, "state.json")))
        return _arrow(os.path.join(folder, _split_of(folder, split, splits)), folder, splits)
    if "state.json" in names and "dataset_info.json" in names:
        return _arrow(folder, folder, ())
    if "clips" in names and (tables := [name for name in names if name.endswith(".tsv")]):
        return _common_voice(folder, split, tables)
    files = list(files_below(folder))
    if any(file.endswith(TRANSCRIPTS) for file in files):
        return _librispeech(folder, split, files)
    for kind in ("picture", "sound"):
        if any(file_kind(file) == kind for file in files) and not _describes(files):
            return _media(folder, split, files, kind)
    return _tables(folder, split, files)


def _describes(files: Sequence[str]) -> bool:
    """Whether pictures or recordings lie beside rows that name them: any other table than a metadata file."""
    return any(is_table(file) and os.path.basename(file) not in METADATA for file in files)


def _arrow(folder: str, root: str, splits: tuple[str, ...]) -> Recognised:
    files = tuple(sorted(file for file in files_below(folder) if file_kind(file) == "arrow"))
    if not files:
        raise DataError(f"{folder} holds no .arrow files.")
    return Recognised("Arrow", "arrow", files, root, splits)


def _common_voice(folder: str, split: str, tables: Sequence[str]) -> Recognised:
    names = {name.removesuffix(".tsv") for name in tables}
    present = tuple(sorted(names & {"train", "dev", "test", "validated", "invalidated", "other"}))
    wanted = next((name for name in (split, *SPLITS.get(split, ())) if name in names), None)
    if wanted is None:
        raise _no_split(folder, split, present or tuple(sorted(names)))
    return Recognised("Common Voice", "csv", (os.path.join(folder, f"{wanted}.tsv"),), folder, present)


def _librispeech(folder: str, split: str, files: Sequence[str]) -> Recognised:
    parts = {os.path.relpath(file, folder).split(os.sep)[0] for file in files if file.endswith(TRANSCRIPTS)}
    # train-clean-100, dev-other, …, possibly below LibriSpeech/.
    if parts == {"LibriSpeech"}:
        return _librispeech(os.path.join(folder, "LibriSpeech"), split, files)
    by_split = {name: _of_split(parts, name) for name in SPLITS}
    splits = tuple(name for name, own in by_split.items() if own)
    own = by_split.get(split, set()) if splits else parts
    if not own:
        raise _no_split(folder, split, splits)
    roots = tuple(os.path.join(folder, part) + os.sep for part in own)
    chosen = [file for file in files if file.endswith(TRANSCRIPTS) and (not splits or file.startswith(roots))]
    return Recognised("LibriSpeech", "sound", tuple(chosen), folder, splits)


def _of_split(parts: Iterable[str], split: str) -> set[str]:
    return {part for part in parts if part.lower().split("-")[0].split("_")[0] in SPLITS[split]}


def _media(folder: str, split: str, files: Sequence[str], kind: str) -> Recognised:
    """Pictures or recordings: in folders of splits or of classes or not, with a metadata file or not."""
    tops = {os.path.relpath(file, folder).split(os.sep)[0] for file in files}
    by_split = {name: [top for top in tops if top.lower() in SPLITS[name]] for name in SPLITS}
    splits = tuple(name for name, own in by_split.items() if own)
    root = folder
    if splits:
        own = by_split.get(split, [])
        if not own:
            raise _no_split(folder, split, splits)
        root = os.path.join(folder, own[0])
    elif split != "train":
        raise _no_split(folder, split, ("train",))
    chosen = [file for file in files if file_kind(file) == kind and file.startswith(root + os.sep)]
    metadata = next((path for name in METADATA if os.path.isfile(path := os.path.join(root, name))), None)
    layout: LayoutName = "ImageFolder" if kind == "picture" else "AudioFolder"
    return Recognised(layout, kind, tuple(chosen), root, splits, metadata)  # type: ignore[arg-type]


def _tables(folder: str, split: str, files: Sequence[str]) -> Recognised:
    known = [file for file in files if is_table(file)] or [file for file in files if file_kind(file) == "tokens"]
    if not known:
        raise DataError(f"{folder} holds no files that end in {suffixes()}, and neither pictures nor recordings.")
    kind = one_kind(folder, known)
    by_split = {name: [file for file in known if _names_split(os.path.relpath(file, folder), name)] for name in SPLITS}
    splits = tuple(name for name, own in by_split.items() if own)
    own = by_split.get(split, []) if splits else known if split == "train" else []
    if not own:
        raise _no_split(folder, split, splits or ("train",))
    return Recognised(_BY_KIND.get(kind, "rows"), kind, tuple(own), folder, splits)


def _names_split(path: str, split: str) -> bool:
    """Whether a part of the path between separators is the name of a split: `train-0.jsonl`, `test/a.csv`."""
    words = "".join(character if character.isalpha() else " " for character in path.lower()).split()
    return any(word in SPLITS[split] for word in words)


def _split_of(folder: str, split: str, splits: Sequence[str]) -> str:
    for name in (split, *SPLITS.get(split, ())):
        if name in splits:
            return name
    raise _no_split(folder, split, tuple(splits))


def _no_split(folder: str, split: str, splits: tuple[str, ...]) -> DataError:
    return DataError(
        f"{folder} has no split {split!r}; it has {', '.join(splits) or 'none'}. Set `split` to one, or under "
        "data.validation give the training data with `holdout`."
    )
