"""The format of tokenised data: shards of token ids, a record for each row, and a manifest that describes them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shardyard.data.whole_files import aside
from shardyard.errors import DataError
from shardyard.recipe.sources.tokens import FORMAT, MANIFEST

VERSION = 1
TokenType = Literal["uint16", "uint32"]
# One per row of the source, in its order: where its tokens end in the shard, the number by which it is held out, the
# first 8 bytes of the hash of its text before filters, by which it is excluded, the UTF-8 length of its text (at most
# 2^32 - 1), and what it is.
ROW = np.dtype([("end", "<u8"), ("identity", "<u8"), ("content", "<u8"), ("text_bytes", "<u4"), ("status", "<u4")])
# What a row is: a document; no text; a value that cannot be used; a row that cannot be read; one that was repaired, for
# `data.on_error: repair`; one that a filter removes. The upper 24 bits are the number of a filter's reason, from 1 on.
USABLE, EMPTY, UNUSABLE, BROKEN, MENDED, FILTERED = range(6)
REASON_BITS = 8
LARGEST_LENGTH = (1 << 32) - 1
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Run:
    """Consecutive rows of a unit, which is a file or a row group of the source: from `first` on, `rows` of them."""

    unit: int
    first: int
    rows: int


@dataclass(frozen=True)
class Shard:
    """A finished shard: the files NAME.tokens, NAME.rows and, if some rows have problems, NAME.problems.json.

    `statuses` counts rows by what they are; `task` and `part` give the order of shards.
    """

    name: str
    task: int
    part: int
    runs: tuple[Run, ...]
    rows: int
    tokens: int
    text_bytes: int
    largest_id: int
    statuses: tuple[int, ...]
    is_last: bool
    sha256: Mapping[str, str]

    @classmethod
    def of(cls, fields: Any) -> Shard:
        """From JSON."""
        runs = tuple(Run(**run) for run in fields["runs"])
        return cls(**{**fields, "runs": runs, "statuses": tuple(fields["statuses"])})


@dataclass(frozen=True)
class Unit:
    """A file or a row group of the source. `shard` is the number of the source's shard that it is part of."""

    file: str | None
    row_group: int | None
    shard: int
    rows: int


@dataclass(frozen=True)
class Counts:
    """Totals of a set; `unusable` rows cannot be read or used, `filtered` ones are removed by data.filters."""

    rows: int
    documents: int
    empty: int
    unusable: int
    filtered: int
    tokens: int
    text_bytes: int
    largest_id: int


@dataclass(frozen=True)
class Manifest:
    """What a finished set holds, and of what it was made."""

    address: str
    token_type: TokenType
    tokenizer: str
    tokenizer_sha256: str
    vocabulary: int
    source: Mapping[str, object]
    options: Mapping[str, object]
    counts: Counts
    units: tuple[Unit, ...]
    shards: tuple[Shard, ...]
    seconds: float

    def save(self, folder: Path) -> None:
        """Write the manifest, which makes the set visible; whole or not at all."""
        # The format comes first: by its beginning the file is recognised.
        with aside(folder / MANIFEST) as partial:
            partial.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1), "utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a set, after checking the sizes of its files.

    Raises:
        DataError: it is missing, damaged or of another version, or a file is.
    """
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("version")
        if fields.pop("format") != FORMAT or version != VERSION:
            raise DataError(f"{folder} holds tokenised data of format version {version}; this one reads {VERSION}.")
        counts, units = Counts(**fields.pop("counts")), tuple(Unit(**unit) for unit in fields.pop("units"))
        shards = tuple(Shard.of(shard) for shard in fields.pop("shards"))
        manifest = Manifest(**fields, counts=counts, units=units, shards=shards)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is no manifest of tokenised data ({error}); tokenise the data again.") from error
    for shard in manifest.shards:
        _check_sizes(folder, shard, np.dtype(manifest.token_type).itemsize)
    return manifest


def _check_sizes(folder: Path, shard: Shard, width: int) -> None:
    for kind, size in (("tokens", shard.tokens * width), ("rows", shard.rows * ROW.itemsize)):
        path = folder / f"{shard.name}.{kind}"
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "missing" if found is None else f"{found} bytes long, not {size}"
            raise DataError(f"{path} is {state}; remove {folder} and tokenise the data again.")


def damaged_files(folder: Path) -> list[str]:
    """Files whose SHA-256 differs from the manifest; reads every byte. Raises DataError as `read_manifest` does."""
    return [
        name
        for shard in read_manifest(folder).shards
        for name, expected in shard.sha256.items()
        if not (folder / name).is_file() or _sha256(folder / name) != expected
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def finished_shards(folder: Path) -> list[Shard]:
    """The shards of an unfinished set that are complete, in order."""
    found = []
    for path in folder.glob("*.json"):
        if path.name[:1].isdigit() and not path.name.endswith(".problems.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                found.append(Shard.of(json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda shard: (shard.task, shard.part))


def counts_of(shards: Sequence[Shard]) -> Counts:
    """The totals of shards."""
    by_status = [sum(shard.statuses[status] for shard in shards) for status in range(6)]
    return Counts(
        rows=sum(shard.rows for shard in shards),
        documents=by_status[USABLE],
        empty=by_status[EMPTY],
        unusable=by_status[UNUSABLE] + by_status[BROKEN] + by_status[MENDED],
        filtered=by_status[FILTERED],
        tokens=sum(shard.tokens for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        largest_id=max((shard.largest_id for shard in shards), default=-1),
    )


def token_type(vocabulary: int) -> TokenType:
    """The type of the ids of a vocabulary of this size."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def mapped(path: Path, kind: npt.DTypeLike, offset: int = 0, count: int | None = None) -> npt.NDArray[Any]:
    """A file as an array that is read from memory maps; empty files cannot be mapped.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        size = path.stat().st_size - offset
        if size <= 0 or count == 0:
            return np.empty(0, kind)
        shape = (size // np.dtype(kind).itemsize,) if count is None else (count,)
        # A plain array: slices of np.memmap are slow to make.
        return np.asarray(np.memmap(path, kind, "r", offset=offset, shape=shape))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class Problems:
    """What is wrong with rows, by their number in the shard, and the reasons for which filters remove others."""

    rows: Mapping[int, str]
    reasons: Sequence[str]


def problems_in(folder: Path, shard: Shard) -> Problems:
    """The problems of a shard; most have none."""
    path = folder / f"{shard.name}.problems.json"
    if path.name not in shard.sha256:
        return Problems({}, ())
    found = json.loads(path.read_text(encoding="utf-8"))
    return Problems({int(row): text for row, text in found["rows"].items()}, found["reasons"])
