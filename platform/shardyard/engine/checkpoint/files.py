"""Checkpoints as files: written to a temporary folder, hashed, synced, renamed; verified before they are read.

    checkpoints/step-00000200/
      manifest.json          format, step, world, whether it is good, and size and SHA-256 of every other file
      engine/                DeepSpeed's files: model and optimizer shards
      trainer.json           step, seen tokens, state of early stopping
      data.json              state of every data stream
      rank-00000.json        random states of each rank

A folder with this name is complete, because it is renamed only at the end; an interrupted one keeps a name that starts
with a dot and is removed by the next run. Independent of DeepSpeed and torch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict

from shardyard.errors import CheckpointError, UsageError

FORMAT = 1
MANIFEST = "manifest.json"
_COMMITTED = re.compile(r"^step-(\d{8,})$")
_REPLACED = ".replaced.partial"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file."""

    size_bytes: int
    sha256: str


class Manifest(TypedDict):
    """manifest.json. `world_size`, `zero_stage`, `precision` and the sizes of axes are those of the run that wrote it.

    good: whether a run may continue from the checkpoint; `why` is the reason, if recorded.
    """

    format: int
    step: int
    good: NotRequired[bool]
    why: NotRequired[str]
    world_size: int
    zero_stage: int
    precision: str
    expert_parallel: NotRequired[int]
    sequence_parallel: NotRequired[int]
    tensor_parallel: NotRequired[int]
    files: dict[str, FileFields]
    sha256: str


class FileFields(TypedDict):
    """A `FileEntry` in a manifest."""

    size_bytes: int
    sha256: str


class HashingFile:
    """A binary file that hashes its contents while they are written.

    A disk error is kept until `finish`, and later writes are only counted, so `size_bytes` is the space that the file
    needs even on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self._hash = hashlib.sha256()
        self._error: OSError | None = None
        self._file: BinaryIO | None = None
        self.size_bytes = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            self._error = error

    def write(self, data: bytes) -> int:
        """Append data."""
        self.size_bytes += len(data)
        if self._file is not None and self._error is None:
            self._hash.update(data)
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: `finish` flushes."""

    def finish(self) -> FileEntry:
        """Sync to the disk and close.

        Raises:
            OSError: the file could not be opened or written.
        """
        if self._error is not None or self._file is None:
            self.discard()
            raise self._error or OSError(errno.EBADF, "the file is closed")
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileEntry(self.size_bytes, self._hash.hexdigest())

    def discard(self) -> None:
        """Close after an error; the contents are discarded."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()


def write_json(path: Path, value: Any) -> FileEntry:
    """Write a JSON file, synced."""
    file = HashingFile(path)
    try:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode())
        return file.finish()
    except BaseException:
        file.discard()
        raise


def partial_folder(checkpoints: Path, step: int) -> Path:
    """The folder into which a checkpoint is written until it is committed."""
    return checkpoints / f".step-{step:08d}.partial"


def committed_folder(checkpoints: Path, step: int) -> Path:
    """The name of a committed checkpoint."""
    return checkpoints / f"step-{step:08d}"


def remove_partial(checkpoints: Path) -> None:
    """Remove what interrupted writers left behind; an interrupted replacement is undone first."""
    for replaced in checkpoints.glob(f".step-*{_REPLACED}"):
        committed = checkpoints / replaced.name.removeprefix(".").removesuffix(_REPLACED)
        if not committed.exists():
            with contextlib.suppress(OSError):
                replaced.rename(committed)
    for left in checkpoints.glob(".step-*.partial"):
        _remove(left)


def commit(checkpoints: Path, step: int, files: Mapping[str, FileEntry], **metadata: Any) -> Path:
    """Write the manifest and give the folder its final name, after which the checkpoint exists.

    Raises:
        OSError: the disk is full or the folder has disappeared; the checkpoint then does not exist.
    """
    partial = partial_folder(checkpoints, step)
    body = {
        "format": FORMAT,
        "step": step,
        **metadata,
        "files": {name: asdict(entry) for name, entry in sorted(files.items())},
    }
    write_json(partial / MANIFEST, {**body, "sha256": _digest(body)})
    for folder in sorted({(partial / name).parent for name in files} | {partial}):
        _sync_folder(folder)
    committed = committed_folder(checkpoints, step)
    # A checkpoint of this step from before a restart holds the same state; the new one replaces it. The old one is
    # renamed first, because a partially removed one would look committed.
    replaced = checkpoints / f".{committed.name}{_REPLACED}"
    _remove(replaced)
    if committed.exists() or committed.is_symlink():
        committed.rename(replaced)
    partial.rename(committed)
    _sync_folder(checkpoints)
    _remove(replaced)
    return committed


def set_aside(folder: Path) -> Path | None:
    """Rename a damaged checkpoint, keeping its files for inspection, so that rotation and export ignore it.

    Returns its new name; None if it could not be renamed.
    """
    aside = folder.with_name(f"damaged-{folder.name}")
    try:
        if aside.exists():
            _remove(aside)
        return folder.rename(aside)
    except OSError:
        return None


def put_by(folder: Path) -> Path | None:
    """Rename a checkpoint from which a run does not continue; it is never removed.

    Returns its new name; None if it could not be renamed.
    """
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    aside = next(path for end in endings if not (path := folder.with_name(f"aside-{folder.name}{end}")).exists())
    try:
        return folder.rename(aside)
    except OSError:
        return None


def rewind(checkpoints: Path, step: int) -> list[Path]:
    """Make the checkpoint of `step` the newest; 0 is the beginning. Later ones are set aside.

    It counts as good from now on, because the user chose it. Returns the new names of the later ones.

    Raises:
        UsageError: there is no checkpoint of this step.
        CheckpointError: a later one could not be renamed.
    """
    found = {step_of(path): path for path in committed_checkpoints(checkpoints)}
    if step and step not in found:
        others = ", ".join(map(str, found)) or "none"
        aside = ", ".join(sorted(path.name for path in checkpoints.glob("aside-*")))
        raise UsageError(
            f"--step {step}: {checkpoints} has no checkpoint of this step; available steps: {others}; 0 is the "
            f"beginning.{f' Set aside: {aside}; rename one back to step-… to use it.' if aside else ''}"
        )
    if step and not read_manifest(found[step]).get("good", True):
        mark(found[step], good=True, why="chosen by --step")
    moved = [put_by(path) for other, path in found.items() if other > step]
    if None in moved:
        raise CheckpointError(f"a checkpoint after step {step} in {checkpoints} cannot be renamed; check its owner")
    return [path for path in moved if path is not None]


def mark(folder: Path, *, good: bool, why: str) -> None:
    """Record in the manifest whether a run may continue from a checkpoint. Write errors are ignored."""
    with contextlib.suppress(OSError, CheckpointError):
        body = {key: value for key, value in read_manifest(folder).items() if key != "sha256"}
        body |= {"good": good, "why": why}
        aside = folder / f".{MANIFEST}.partial"
        write_json(aside, {**body, "sha256": _digest(body)})
        aside.replace(folder / MANIFEST)


def bad_because(folder: Path) -> str | None:
    """Why a run must not continue from this checkpoint, even if its files are intact; None for a good one.

    Raises:
        CheckpointError: the manifest cannot be read.
    """
    manifest = read_manifest(folder)
    return None if manifest.get("good", True) else str(manifest.get("why", "it is marked as not good"))


def _remove(folder: Path) -> None:
    """Remove a folder, or the link to one; the next run retries failures."""
    if folder.is_symlink():
        with contextlib.suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def committed_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders of committed checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _COMMITTED.match(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step of a committed checkpoint, from its name."""
    return int(folder.name.removeprefix("step-"))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of one checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, changed, or of an unknown format.
    """
    try:
        manifest: Manifest = json.loads((folder / MANIFEST).read_text())
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        intact = manifest["sha256"] == _digest(body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if not intact:
        raise CheckpointError(f"{folder / MANIFEST} does not match its own SHA-256")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{folder} has format {manifest['format']}; this version reads {FORMAT}")
    return manifest


def damaged_files(
    folder: Path, manifest: Manifest, *, part: int = 0, parts: int = 1, names: Collection[str] | None = None
) -> list[str]:
    """Files of a checkpoint that are missing, differ from its manifest, or are not in it; checks one of `parts` shares.

    Ranks share the reading: rank r checks every file i with i mod parts = r. An extra file counts as damage, because
    DeepSpeed finds shards by pattern and would unpickle an unverified one; hidden files match no pattern.

    Args:
        names: the files to check. Default: all.
    """
    listed = manifest["files"]
    entries = sorted((name, listed[name]) for name in (listed if names is None else names))[part::parts]
    bad = [name for name, entry in entries if not _matches(folder / name, FileEntry(**entry))]
    return bad + (_unlisted(folder, manifest) if part == 0 else [])


def _unlisted(folder: Path, manifest: Manifest) -> list[str]:
    found = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    present = {path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)}
    return sorted(present - set(manifest["files"]) - {MANIFEST})


def _matches(path: Path, entry: FileEntry) -> bool:
    try:
        if path.stat().st_size != entry.size_bytes:
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == entry.sha256


def rotate(checkpoints: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest checkpoints; returns the removed ones."""
    assert keep >= 1, "checked with the recipe"
    return [folder for folder in committed_checkpoints(checkpoints)[:-keep] if _drop(folder)]


def make_room(checkpoints: Path, needed_bytes: int) -> list[Path]:
    """Remove the oldest checkpoints until there is space for a new one; returns the removed ones.

    The newest good one is always kept. Links free no space, so they are kept too.
    """
    committed = committed_checkpoints(checkpoints)
    last_good = next((folder for folder in reversed(committed) if _is_marked_good(folder)), None)
    removed: list[Path] = []
    for folder in committed:
        if removed and free_bytes(checkpoints) >= needed_bytes:
            break
        if folder != (last_good or committed[-1]) and not folder.is_symlink() and _drop(folder):
            removed.append(folder)
    return removed


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder that this user may use."""
    return shutil.disk_usage(folder).free


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_marked_good(folder: Path) -> bool:
    try:
        return bad_because(folder) is None
    except CheckpointError:
        return False


def _drop(folder: Path) -> bool:
    # Renamed first, so that a partially removed one does not look committed.
    doomed = folder.with_name(f".{folder.name}.old.partial")
    _remove(doomed)
    # A failed removal must not fail the new checkpoint; the next rotation retries.
    try:
        folder.rename(doomed)
    except OSError:
        return False
    _remove(doomed)
    return True
