"""What the report.json of a trained tokenizer holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict


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
    """`size` is what a model embeds; it is below `asked` where the data has no more pieces."""

    size: int
    asked: int | None
    special: int


class Pieces(TypedDict):
    """How often the pieces occur in the training documents, and the longest of them."""

    rare_below: int
    rare_share: float | None
    unused: int
    longest: list[str]


class Measurements(TypedDict):
    """What is measured of a tokenizer. `documents`: how many are for training, and held out."""

    vocabulary: Vocabulary
    documents: dict[str, int]
    measured_on: str
    overall: Figures
    by_label: dict[str, Figures]
    pieces: Pieces


class Provenance(TypedDict):
    """Where a tokenizer comes from: its spec, the sources that it was trained on, and the versions that trained it."""

    spec: Mapping[str, object]
    data: Sequence[Mapping[str, object]]
    versions: Mapping[str, str]


class Described(Measurements, Provenance):
    """A tokenizer, measured, and where it comes from."""


class Report(Described):
    """report.json. `files`: the files of the folder with their SHA-256; `fingerprint` is one over all of them."""

    files: dict[str, str]
    fingerprint: str
