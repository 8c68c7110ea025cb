"""The folder of a trained tokenizer: its report, and the check that its files are unchanged since training.

Imports no tokenizer library, so that listing tokenizers is fast.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from shardyard.errors import DataError

REPORT = "report.json"


class Figures(TypedDict):
    """Counts over documents and their ratios; a ratio without a denominator is None."""

    documents: int
    bytes: int
    words: int
    tokens: int
    bytes_per_token: float | None
    tokens_per_word: float | None
    unknown_share: float | None


class Vocabulary(TypedDict):
    """`size` is the number of embeddings; it is below `asked` if the data has too few pieces."""

    size: int
    asked: int | None
    special: int


class Pieces(TypedDict):
    """Frequencies of the pieces in the training documents, and the longest pieces."""

    rare_below: int
    rare_share: float | None
    unused: int
    longest: list[str]


class Measurements(TypedDict):
    """Measurements of a tokenizer. `documents`: the numbers of training and held-out documents."""

    vocabulary: Vocabulary
    documents: dict[str, int]
    measured_on: str
    overall: Figures
    by_label: dict[str, Figures]
    pieces: Pieces


class Provenance(TypedDict):
    """The origin of a tokenizer: its spec, its training sources, and the library versions."""

    spec: Mapping[str, object]
    data: Sequence[Mapping[str, object]]
    versions: Mapping[str, str]


class Described(Measurements, Provenance):
    """Measurements and provenance of a tokenizer."""


class Report(Described):
    """report.json. `files`: the files of the folder with their SHA-256; `fingerprint` is over all of them."""

    files: dict[str, str]
    fingerprint: str


def trained_folder(spec: Path) -> Path:
    """The folder of the trained tokenizer of a spec file: beside it, with its name."""
    return spec.with_suffix("")


def read_report(folder: Path) -> Report:
    """The report of a trained tokenizer.

    Raises:
        DataError: it cannot be read.
    """
    try:
        report: Report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / REPORT} cannot be read: {error}. Train the tokenizer again.") from error
    if not isinstance(report, dict):
        raise DataError(f"{folder / REPORT} is not a tokenizer report; train the tokenizer again.")
    return report


def verify_folder(folder: Path) -> Report:
    """The report of a folder, after checking that its files are unchanged since training.

    Raises:
        DataError: a file is missing, was added or was changed, or the report is incomplete.
    """
    report = read_report(folder)
    found = file_hashes(folder)
    if folder_fingerprint(found) != report.get("fingerprint"):
        stated = report.get("files", {})
        changed = sorted(name for name in found.keys() | stated.keys() if found.get(name) != stated.get(name))
        raise DataError(
            f"tokenizer {folder} is not what was trained: {', '.join(changed) or REPORT} differs from the fingerprint "
            f"in {REPORT}. Restore the folder, or train it again."
        )
    return report


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of each file of a tokenizer folder except its report and hidden files."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != REPORT and path.name[0] != ".")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def folder_fingerprint(files: dict[str, str]) -> str:
    """SHA-256 (hex) over the names and hashes of a folder's files: equal values mean byte-identical tokenizers."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
