"""What DeepSpeed calls the files of a checkpoint, by name: members of the ranks' files, or files of the first layout.

The first layout (format 1) has a folder `engine/` with files of torch and `rank-NNNNN.json`; format 2 one file a rank.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import FileEntry
from shardyard.engine.checkpoint.rank_file import SUFFIX, Header, read_header, read_member
from shardyard.engine.checkpoint.tensor_files import code_in, read_tensors
from shardyard.errors import CheckpointError

ENGINE_TAG = "engine"
# Folders that DeepSpeed copies beside its files: those of tensors that are kept on NVMe.
OFFLOADED = "offloaded_tensors"
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_")


def file_of_rank(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}{SUFFIX}"


class Shards:
    """The states in a checkpoint by the names of DeepSpeed's files."""

    def __init__(self, folder: Path, manifest: files.Manifest, *, trust: bool = False) -> None:
        self.folder = folder
        self._manifest = manifest
        self._trust = trust
        self._headers: dict[str, Header] = {}
        self.is_old = manifest["format"] == 1
        # Name of DeepSpeed → name in the manifest.
        self._homes: Mapping[str, str] = (
            {
                name.removeprefix(f"{ENGINE_TAG}/"): name
                for name in manifest["files"]
                if name.startswith(f"{ENGINE_TAG}/") and name.endswith(".pt")
            }
            if self.is_old
            else {member: name for name, entry in manifest["files"].items() for member in entry.get("members", ())}
        )

        for name in self._homes:
            # They become names in a folder.
            if Path(name).name != name:
                raise CheckpointError(f"{folder / files.MANIFEST} names a member {name!r}, which is a path")

    @property
    def names(self) -> Collection[str]:
        """Names of DeepSpeed's files."""
        return self._homes.keys()

    def matching(self, pattern: str) -> list[str]:
        """Names of DeepSpeed's files that match a pattern of the shell."""
        return sorted(name for name in self._homes if fnmatch(name, pattern))

    def read(self, name: str, *, copied: bool = False) -> Any:
        """The state that DeepSpeed has in a file: tensors and plain values.

        Args:
            copied: with memory of its own; otherwise mapped into memory, and read from the disk where it is used.

        Raises:
            CheckpointError: there is no such file, or it holds more.
        """
        if name not in self._homes:
            raise CheckpointError(f"{self.folder} has no {name}; copy the checkpoint again")
        path = self.folder / self._homes[name]
        if self.is_old:
            return read_tensors(path, trust=self._trust, **({} if copied else {"mmap": True}))
        return read_member(self._header(self._homes[name]), name, copied=copied)

    def by_rank(self, pattern: str) -> list[Any]:
        """The states of each rank, in their order.

        Raises:
            CheckpointError: those of a rank are missing.
        """
        found = {int(match[1]): name for name in self.matching(pattern) if (match := _RANK.search(name))}
        if sorted(found) != list(range(len(found))) or not found:
            raise CheckpointError(f"{self.folder} has files of ranks {sorted(found)}; copy the checkpoint again")
        return [self.read(found[rank]) for rank in range(len(found))]

    def random(self, rank: int) -> str:
        """The random states of a rank, as text."""
        if self.is_old:
            return (self.folder / f"rank-{rank:05d}.json").read_text()
        return self._header(file_of_rank(rank)).random

    def code(self, part: int, parts: int) -> list[str]:
        """Names of code in every file i of the first layout with i mod parts = part; later ones cannot hold any."""
        own = sorted(self._homes.values())[part::parts] if self.is_old else []
        return [name for file in own for name in code_in(self.folder / file)]

    def damaged(self, wanted: Callable[[str], bool]) -> list[str]:
        """Files with damage where tensors lie that are wanted; nothing else is read.

        Args:
            wanted: whether a tensor is read, by its place such as `FILE/optimizer_state_dict/fp32_flat_groups/0`. In
                the first layout, files are verified whole, and the place is `FILE`.
        """
        homes = sorted(set(self._homes.values()))
        found = [name for name in homes if self._is_damaged(name, wanted)]
        return found + files.unlisted(self.folder, self._manifest)

    def _is_damaged(self, name: str, wanted: Callable[[str], bool]) -> bool:
        if not self.is_old:
            numbers = self._blocks_with(name, wanted)
        else:
            numbers = [0] if wanted(name.removeprefix(f"{ENGINE_TAG}/")) else []
        return bool(numbers and files.damaged_in(self.folder, self._manifest, name, numbers))

    def _blocks_with(self, name: str, wanted: Callable[[str], bool]) -> list[int]:
        entry = FileEntry.of(self._manifest["files"][name])
        size = entry.block_bytes or max(1, entry.size_bytes)
        # The header says where the rest is: its own blocks are verified with it.
        try:
            header = self._header(name)
        except (CheckpointError, OSError):
            return list(range(len(entry.digests)))
        spans = [(0, header.data_begin), *(span for place, span in header.spans.items() if wanted(place))]
        found = {at for begin, end in spans if begin < end for at in range(begin // size, -(-end // size))}
        return sorted(at for at in found if at < len(entry.digests))

    def _header(self, name: str) -> Header:
        if name not in self._headers:
            self._headers[name] = read_header(self.folder / name)
        return self._headers[name]

    @contextmanager
    def as_files(self) -> Iterator[Path]:
        """A folder in which DeepSpeed finds its files by name; what they hold comes from `read`.

        It looks whether they exist before it asks its checkpoint engine for them.
        """
        if self.is_old:
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="shardyard-") as scratch:
            engine = Path(scratch) / ENGINE_TAG
            engine.mkdir()
            for name in self._homes:
                (engine / name).touch()
            offloaded = self.folder / ENGINE_TAG / OFFLOADED
            if offloaded.is_dir():
                (engine / OFFLOADED).symlink_to(offloaded.resolve())
            yield Path(scratch)


def opened(folder: Path, *, trust: bool = False) -> Shards:
    """The states in a checkpoint, which are not verified yet."""
    return Shards(folder, files.read_manifest(folder), trust=trust)
