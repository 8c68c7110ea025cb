"""DeepSpeed's shards as one file a rank: written at once or, from a copy in host memory, while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import FileEntry, discard, written
from shardyard.engine.checkpoint.rank_file import rank_file
from shardyard.engine.checkpoint.shards import ENGINE_TAG, Shards
from shardyard.engine.checkpoint.snapshot import HostBuffers
from shardyard.errors import CheckpointError


class ShardFiles(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's interface for writing files: what it writes in several becomes one, with deferred errors.

    `copies`: `save` copies the states; otherwise `write` is called before training goes on. `errors`, `codes`: what
    went wrong, as text and as numbers of the system (`errno`); `size_bytes`: the size of the file, written or not.
    `source`: the checkpoint that DeepSpeed reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "shardyard"
        self.copies = False
        self.source: Shards | None = None
        self._buffers = HostBuffers()
        self._states: dict[str, object] = {}
        self.create(None)

    def create(self, info: Any) -> None:
        """Forget the previous checkpoint."""
        self._forget()
        self.drop()

    def _forget(self) -> None:
        self.entry: FileEntry | None = None
        self.errors: list[str] = []
        self.codes: set[int] = set()
        self.size_bytes = 0

    def drop(self) -> None:
        """Forget the states."""
        self._uncopied = ""
        self._states.clear()
        self._buffers.reuse()

    @property
    def members(self) -> list[str]:
        """Names of the files that DeepSpeed would have written on this rank."""
        return sorted(self._states)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create the folder of a checkpoint; an error is kept until all ranks exchange their errors."""
        folder = Path(path)
        folder = folder.parent if folder.name == ENGINE_TAG else folder
        self.kept(lambda: folder.mkdir(parents=True, exist_ok=True), folder)

    def save(self, state_dict: Any, path: str) -> None:
        """Take, or copy, the contents of one of DeepSpeed's files; `write` reports what could not be copied."""
        name = Path(path).name
        if not self.copies:
            self._states[name] = state_dict
            return
        try:
            self._states[name] = self._buffers.copied(state_dict)
        # torch reports a lack of memory as a RuntimeError; the other ranks must not wait for this one.
        except (RuntimeError, MemoryError) as error:
            self._uncopied = f"its states could not be copied to host memory: {error}"

    def write(self, path: Path, random: str) -> None:
        """Write the rank's file, anew if it is called again; an error is kept until all ranks exchange their errors.

        Args:
            random: the rank's random states, as text.
        """
        self._forget()
        if self._uncopied:
            self.errors.append(self._uncopied)
        else:
            self.kept(lambda: self._write(path, random), path)

    def load(self, path: str, map_location: Any = None) -> Any:
        """The state in one of DeepSpeed's files, which matches the manifest but may have an untrusted author."""
        assert self.source is not None, "set by who lets DeepSpeed load"
        return self.source.read(Path(path).name, copied=True)

    def commit(self, info: Any) -> bool:
        """Nothing to do: `Checkpointer` commits the whole folder."""
        return True

    def kept(self, action: Callable[[], object], path: Path) -> None:
        """Run an operation on a file and keep its error until all ranks exchange their errors."""
        try:
            action()
        except OSError as error:
            self.codes |= {error.errno} if error.errno else set()
            self.errors.append(files.located(error, path))
        except CheckpointError as error:
            self.errors.append(str(error))

    def _write(self, path: Path, random: str) -> None:
        file = rank_file(self._states, random)
        self.size_bytes = file.size_bytes
        # The folder of an attempt that failed was removed; without it, an error of its making is met here again.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.entry = written(path, file.buffers(), file.size_bytes)
        except BaseException:
            discard(path)
            raise
