"""Checkpoints as files: written to a temporary folder, hashed, synced, renamed; verified before they are read.

    checkpoints/step-00000200/
      manifest.json             format, step, world, whether it is good, and size and hashes of every other file
      rank-00000.safetensors    shards of model and optimizer, and random states of each rank (`rank_file.py`)
      trainer.json              step, seen tokens, state of early stopping
      data.json                 state of every data stream

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
import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from shardyard.engine.checkpoint.blocks import FileEntry, damaged_blocks, written
from shardyard.errors import CheckpointError, UsageError

# 1: files of torch in engine/, hashed whole. 2: one file a rank, hashed by blocks.
FORMAT = 2
READABLE = (1, 2)
MANIFEST = "manifest.json"
_COMMITTED = re.compile(r"^step-(\d{8,})$")
_REPLACED = ".replaced.partial"
_DAMAGED = "damaged-"
# Files of a checkpoint that one thread removes; more are removed by several.
_FEW_FILES, _REMOVERS = 16, 8
# Files that are read at once when they are copied.
SMALL_BYTES = 64 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What an error of a file says of its disk, and what helps.
_ADVICE = {
    frozenset({errno.EROFS}): "Its file system is read-only: mounted so, or made so by the kernel because of errors "
    "(`dmesg -T` there). Mend it and mount it for writing",
    frozenset(
        {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO}
    ): "The disk, or the "
    "server of a shared file system, has lost data or does not answer (`dmesg -T` there says more). Mend it",
    frozenset({errno.EACCES, errno.EPERM}): "The user of the run may not write there. Give it the right to",
    frozenset({errno.EMFILE, errno.ENFILE}): "Too many files are open there. Raise the limit (`ulimit -n`)",
}
_removing: list[threading.Thread] = []


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
    """A `FileEntry` in a manifest. members: what DeepSpeed calls the files in it (`shards.py`)."""

    size_bytes: int
    sha256: NotRequired[str | list[str]]
    blake3: NotRequired[list[str]]
    block_bytes: NotRequired[int]
    members: NotRequired[list[str]]


def write_json(path: Path, value: Any) -> FileEntry:
    """Write a JSON file, synced."""
    return written(path, [memoryview(json.dumps(value, indent=1, sort_keys=True).encode())])


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
    for left in checkpoints.glob(".*step-*.partial"):
        _remove(left)


def commit(
    checkpoints: Path,
    step: int,
    files: Mapping[str, FileEntry],
    *,
    members: Mapping[str, Sequence[str]] | None = None,
    **metadata: Any,
) -> Path:
    """Write the manifest and give the folder its final name, after which the checkpoint exists.

    Args:
        members: name of a file → what DeepSpeed calls the files in it.

    Raises:
        OSError: the disk is full or the folder has disappeared; the checkpoint then does not exist.
    """
    partial = partial_folder(checkpoints, step)
    body: Any = {
        "format": FORMAT,
        "step": step,
        **metadata,
        "files": {name: entry.fields() for name, entry in sorted(files.items())},
    }
    for name, held in (members or {}).items():
        body["files"][name]["members"] = sorted(held)
    write_json(partial / MANIFEST, {**body, "sha256": digest_of(body)})
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
    aside = folder.with_name(f"{_DAMAGED}{folder.name}")
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
        write_json(aside, {**body, "sha256": digest_of(body)})
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
        return
    # Files of a thousand ranks lie on a file system where each removal is a round trip.
    found = [path for path in folder.rglob("*") if not path.is_dir()] if folder.is_dir() else []
    if len(found) > _FEW_FILES:
        with ThreadPoolExecutor(_REMOVERS, "remove") as pool:
            list(pool.map(_unlink, found))
    shutil.rmtree(folder, ignore_errors=True)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_records(run: Path) -> None:
    """Sync what the run has recorded so far: a restart continues after a checkpoint, and records no earlier step again.

    Errors are ignored, as with all logs.
    """
    for path in run.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def digest_of(body: Mapping[str, object]) -> str:
    """The hash of a manifest that stands in it, of the rest of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def committed_checkpoints(checkpoints: Path) -> list[Path]:
    """Folders of committed checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _COMMITTED.match(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def newest_good_step(checkpoints: Path) -> int:
    """The step from which a run goes on, as long as no file is damaged; 0 without a checkpoint."""
    good = (step_of(folder) for folder in reversed(committed_checkpoints(checkpoints)) if _is_marked_good(folder))
    return next(good, 0)


def step_of(folder: Path) -> int:
    """The step of a committed checkpoint, from its name."""
    return int(folder.name.removeprefix("step-"))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of one checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, changed, or of an unknown format.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}") from error
    return manifest_of(text, str(folder))


def manifest_of(text: bytes, folder: str) -> Manifest:
    """The manifest in the text of its file.

    Args:
        folder: where it lies, for messages.

    Raises:
        CheckpointError: it is damaged, changed, or of an unknown format.
    """
    try:
        manifest: Manifest = json.loads(text)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        intact = manifest["sha256"] == digest_of(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}/{MANIFEST} cannot be read: {error}") from error
    if not intact:
        raise CheckpointError(f"{folder}/{MANIFEST} does not match its own SHA-256")
    if manifest["format"] not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise CheckpointError(f"{folder} has format {manifest['format']}; this version reads {known}")
    return manifest


def num_ranks(manifest: Manifest) -> int:
    """How many ranks wrote a checkpoint."""
    return manifest["world_size"]


def damaged_files(folder: Path, manifest: Manifest, *, part: int = 0, parts: int = 1) -> list[str]:
    """Files of a checkpoint that are missing, differ from its manifest, or are not in it; checks one of `parts` shares.

    Ranks share the reading by blocks: rank r checks every block i with i mod parts = r. An extra file counts as damage,
    because nothing vouches for it; hidden files are left alone.
    """
    entries = {name: FileEntry.of(fields) for name, fields in sorted(manifest["files"].items())}
    blocks = [(name, at) for name, entry in entries.items() for at in range(len(entry.digests))][part::parts]
    numbers: dict[str, list[int]] = {}
    for name, at in blocks:
        numbers.setdefault(name, []).append(at)
    bad = [name for name, own in numbers.items() if damaged_blocks(folder / name, entries[name], own)]
    return bad + (unlisted(folder, manifest) if part == 0 else [])


def damaged_in(
    folder: Path, manifest: Manifest, name: str, numbers: Collection[int] | None = None
) -> list[tuple[int, int]]:
    """Begin and end, in bytes, of what differs in one file; the whole of it if it is missing or has another size.

    Args:
        numbers: of the blocks to check. Default: all.
    """
    entry = FileEntry.of(manifest["files"][name])
    return [entry.ranges[number] for number in damaged_blocks(folder / name, entry, numbers)]


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not name."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    present = {path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)}
    return sorted(present - set(manifest["files"]) - {MANIFEST})


def rotate(checkpoints: Path, keep: int, *, keep_damaged: int | None = None, wait: bool = True) -> list[Path]:
    """Remove all but the `keep` newest checkpoints, and all but `keep_damaged` damaged ones; returns the removed ones.

    Args:
        keep_damaged: None keeps all.
        wait: whether their files are gone when this returns; otherwise a thread removes them (`wait_for_removals`).
    """
    assert keep >= 1, "checked with the recipe"
    damaged = sorted(checkpoints.glob(f"{_DAMAGED}step-*"))
    doomed = committed_checkpoints(checkpoints)[:-keep]
    if keep_damaged is not None:
        doomed += damaged[: len(damaged) - keep_damaged]
    return [folder for folder in doomed if drop(folder, wait=wait)]


def make_room(checkpoints: Path, needed_bytes: int) -> list[Path]:
    """Remove damaged checkpoints and then the oldest ones until there is space for a new one; returns the removed ones.

    The newest good one is always kept. Links free no space, so they are kept too.
    """
    wait_for_removals()
    committed = committed_checkpoints(checkpoints)
    last_good = next((folder for folder in reversed(committed) if _is_marked_good(folder)), None)
    removed: list[Path] = []
    for folder in [*sorted(checkpoints.glob(f"{_DAMAGED}step-*")), *committed]:
        if removed and free_bytes(checkpoints) >= needed_bytes:
            break
        if folder != (last_good or committed[-1]) and not folder.is_symlink() and drop(folder):
            removed.append(folder)
    return removed


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder that this user may use."""
    return shutil.disk_usage(folder).free


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the user's quota is full."""
    return isinstance(error, OSError) and says_full((error.errno or 0,))


def located(error: OSError, path: Path) -> str:
    """An error with the host and the file that it is about."""
    where = "" if error.filename else f" in {path}"
    return f"{error}{where} on {socket.gethostname()}"


def says_full(codes: Collection[int]) -> bool:
    """Whether one of these numbers of errors (`errno`) says that the disk or the user's quota is full."""
    return bool(_FULL & set(codes))


def what_to_do(codes: Collection[int]) -> str:
    """What the numbers of errors mean for the disk, and what helps, as the beginning of a sentence; "" if unknown."""
    return next((text for known, text in _ADVICE.items() if known & set(codes)), "")


def _is_marked_good(folder: Path) -> bool:
    try:
        return bad_because(folder) is None
    except CheckpointError:
        return False


def drop(folder: Path, *, wait: bool = True) -> bool:
    """Remove a checkpoint; False if it cannot be renamed, which comes first, so that a partially removed one does not
    look committed. Files that cannot be removed are left to the next run."""
    doomed = folder.with_name(f".{folder.name.removeprefix('.')}.old.partial")
    _remove(doomed)
    try:
        folder.rename(doomed)
    except OSError:
        return False
    if wait:
        _remove(doomed)
    else:
        _removing.append(threading.Thread(target=_remove, args=(doomed,), name="remove"))
        _removing[-1].start()
    return True


def wait_for_removals() -> None:
    """Wait until everything is gone whose removal was begun; a process that is killed leaves it to the next run."""
    while _removing:
        _removing.pop().join()
