"""The checkpoints of a run as they lie on the disk, and which of them may be removed. Independent of torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.engine.checkpoint import files
from shardyard.errors import CheckpointError, UsageError

_NAME = re.compile(r"^(?P<kind>damaged-|aside-)?step-(?P<step>\d{8,})(-\d+)?$")
# By format of the manifest.
LAYOUTS = {1: "torch files", 2: "one file a rank"}


@dataclass(frozen=True)
class Listed:
    """One folder of checkpoints.

    state: `good`; `spoiled` (marked as one from which no run continues); `unreadable` (its manifest); or, for folders
    that were renamed, `damaged` or `aside`. written: when, in seconds since 1970. problem: why it is not good.
    """

    path: Path
    step: int
    state: str
    size_bytes: int
    written: float
    ranks: int | None = None
    zero_stage: int | None = None
    layout: str | None = None
    problem: str | None = None

    @property
    def is_committed(self) -> bool:
        """Whether the folder has the name of a checkpoint."""
        return self.state not in ("damaged", "aside")


def listed(checkpoints: Path) -> list[Listed]:
    """Every checkpoint in a folder, renamed ones included, in the order of their steps."""
    if not checkpoints.is_dir():
        return []
    found = [(path, match) for path in checkpoints.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    rows = [_row(path, int(match["step"]), (match["kind"] or "").removesuffix("-")) for path, match in found]
    return sorted(rows, key=lambda row: (row.step, row.path.name))


def _row(path: Path, step: int, renamed: str) -> Listed:
    size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    manifest_file = path / files.MANIFEST
    written = (manifest_file if manifest_file.exists() else path).stat().st_mtime
    try:
        manifest = files.read_manifest(path)
    except CheckpointError as error:
        return Listed(path, step, renamed or "unreadable", size, written, problem=str(error))
    return row_of(path, step, renamed, size, written, manifest)


def row_of(path: Path, step: int, renamed: str, size_bytes: int, written: float, manifest: files.Manifest) -> Listed:
    """The row of a checkpoint with a manifest; `renamed` as the beginning of its name says, or ""."""
    good = manifest.get("good", True)
    return Listed(
        path,
        step,
        renamed or ("good" if good else "spoiled"),
        size_bytes,
        written,
        ranks=files.num_ranks(manifest),
        zero_stage=manifest["zero_stage"],
        layout=LAYOUTS[manifest["format"]],
        problem=None if good else str(manifest.get("why", "it is marked as not good")),
    )


def problems(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint, each with its file and bytes; [] for a whole one."""
    try:
        manifest = files.read_manifest(folder)
        found: list[str] = []
        for name, entry in sorted(manifest["files"].items()):
            path = folder / name
            if not path.is_file():
                found.append(f"{name} is missing")
            elif path.stat().st_size != entry["size_bytes"]:
                found.append(f"{name} has {path.stat().st_size} bytes instead of {entry['size_bytes']}")
            else:
                ranges = files.damaged_in(folder, manifest, name)
                found += [f"{name} differs in bytes {begin} to {end - 1}" for begin, end in ranges]
        return found + [f"{name} is not in the manifest" for name in files.unlisted(folder, manifest)]
    except CheckpointError as error:
        return [str(error)]


def to_remove(rows: Sequence[Listed], chosen: Iterable[str], *, force: bool) -> list[Listed]:
    """The checkpoints that a user names.

    Args:
        chosen: steps, names of folders, `damaged` or `aside`.
        force: even if no good one is left.

    Raises:
        UsageError: a name fits none, or no good one would be left.
    """
    found: dict[Path, Listed] = {}
    for word in chosen:
        fits = [row for row in rows if _fits(row, word)]
        if not fits and word not in ("damaged", "aside"):
            there = ", ".join(row.path.name for row in rows) or "none"
            raise UsageError(f"{word} is no checkpoint of this run; there are: {there}.")
        found |= {row.path: row for row in fits}
    good = [row for row in rows if row.state == "good"]
    if good and all(row.path in found for row in good) and not force:
        raise UsageError(
            f"{good[-1].path.name} is the last good checkpoint: without it the run starts from the beginning. "
            "--force removes it nevertheless."
        )
    return list(found.values())


def _fits(row: Listed, word: str) -> bool:
    if word.isdecimal():
        return row.is_committed and row.step == int(word)
    return word in (row.path.name, row.state if not row.is_committed else None)
