"""The checkpoints of a run in an object store: listing, verifying, removing. A folder there has its manifest last.

URL/run.json …                            files of the run folder, as of the newest checkpoint
URL/checkpoints/step-00000200/…           the files of a checkpoint
URL/checkpoints/step-00000200/manifest.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import FileEntry, differing
from shardyard.engine.checkpoint.listing import Listed, row_of
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.errors import CheckpointError

CHECKPOINTS = "checkpoints"
_OF_STEP = re.compile(rf"^{CHECKPOINTS}/(step-\d{{8,}})/(.+)$")


@dataclass(frozen=True)
class Stored:
    """A folder of a checkpoint in a store. sizes: bytes of each file in it; manifest: None without a readable one."""

    name: str
    sizes: Mapping[str, int]
    manifest: files.Manifest | None
    problem: str = ""

    @property
    def is_committed(self) -> bool:
        """Whether it has a manifest, readable or not: without one it is being written, or removed."""
        return files.MANIFEST in self.sizes

    @property
    def is_good(self) -> bool:
        """Whether a run may go on from it, as far as its manifest says."""
        return self.manifest is not None and self.manifest.get("good", True)

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return files.step_of(Path(self.name))


def stored_in(store: Store) -> list[Stored]:
    """Every folder of a checkpoint in the store, oldest first, those without a manifest too.

    Raises:
        CheckpointError: the store cannot be read.
    """
    found: dict[str, dict[str, int]] = {}
    for path, size in store.sizes(CHECKPOINTS).items():
        if match := _OF_STEP.match(path):
            found.setdefault(match[1], {})[match[2]] = size
    return [_stored(store, name, found[name]) for name in sorted(found, key=lambda one: int(one.removeprefix("step-")))]


def _stored(store: Store, name: str, sizes: Mapping[str, int]) -> Stored:
    if files.MANIFEST not in sizes:
        return Stored(name, sizes, None, "it has no manifest: its upload has not ended")
    text = store.read(f"{CHECKPOINTS}/{name}/{files.MANIFEST}")
    try:
        manifest = files.manifest_of(text, f"{store.url}/{CHECKPOINTS}/{name}")
    except CheckpointError as error:
        return Stored(name, sizes, None, str(error))
    return Stored(name, sizes, manifest)


def rows_of(found: Iterable[Stored]) -> list[Listed]:
    """The committed ones as rows of a list."""
    return [_row(one) for one in found if one.is_committed]


def _row(one: Stored) -> Listed:
    size = sum(one.sizes.values())
    if one.manifest is None:
        return Listed(Path(one.name), one.step, "unreadable", size, 0.0, problem=one.problem)
    return row_of(Path(one.name), one.step, "", size, 0.0, one.manifest)


def problems_of(store: Store, one: Stored) -> list[str]:
    """What is wrong with a checkpoint in a store, after reading every byte of it; [] if it is whole.

    Raises:
        CheckpointError: the store cannot be read.
    """
    if one.manifest is None:
        return [one.problem]
    found = []
    for name, fields in sorted(one.manifest["files"].items()):
        entry, path = FileEntry.of(fields), f"{CHECKPOINTS}/{one.name}/{name}"
        if name not in one.sizes:
            found.append(f"{name} is missing")
        elif one.sizes[name] != entry.size_bytes:
            found.append(f"{name} has {one.sizes[name]} bytes instead of {entry.size_bytes}")
        else:
            bad = differing(entry, partial(store.read, path))
            found += [f"{name} differs in bytes {entry.ranges[at][0]} to {entry.ranges[at][1] - 1}" for at in bad]
    unlisted = sorted(one.sizes.keys() - one.manifest["files"].keys() - {files.MANIFEST})
    return found + [f"{name} is not in the manifest" for name in unlisted]


def remove(store: Store, one: Stored) -> None:
    """Remove a checkpoint: its manifest first, so that it is never there in part.

    Raises:
        CheckpointError: a file cannot be removed.
    """
    top = f"{CHECKPOINTS}/{one.name}"
    if one.is_committed:
        store.remove([f"{top}/{files.MANIFEST}"])
    store.remove([f"{top}/{name}" for name in one.sizes if name != files.MANIFEST])


def doomed(found: Sequence[Stored], keep: int) -> list[Stored]:
    """Those beyond the `keep` newest committed ones; the last good one always stays."""
    committed = [one for one in found if one.is_committed]
    last_good = next((one for one in reversed(committed) if one.is_good), None)
    return [one for one in committed[:-keep] if one is not last_good]


def manifest_text(manifest: Mapping[str, object]) -> bytes:
    """A manifest with its own hash, as it is written."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return json.dumps({**body, "sha256": files.digest_of(body)}, indent=1, sort_keys=True).encode()
