"""DeepSpeed's shard files: written at once or, from a copy in host memory, while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.snapshot import HostBuffers
from shardyard.engine.checkpoint.tensor_files import read_tensors


class ShardFiles(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's interface for writing files, with hashing, syncing and deferred errors.

    `copies`: `save` copies the states, and `write` writes the files from the copies; otherwise `save` writes them.
    `full`: whether an error was a lack of space; `size_bytes`: the size of all files, written or not.
    """

    def __init__(self, *, trust: bool = False) -> None:
        super().__init__()
        self.name = "shardyard"
        self.copies = False
        self._trust = trust
        self._buffers = HostBuffers()
        self._copied: dict[Path, Any] = {}
        self.create(None)

    def create(self, info: Any) -> None:
        """Forget the previous checkpoint."""
        self.written: dict[Path, files.FileEntry] = {}
        self.errors: list[str] = []
        self.full = False
        self.size_bytes = 0
        self.drop()

    def drop(self) -> None:
        """Forget the copies."""
        self._copied.clear()
        self._buffers.reuse()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create the folder of a checkpoint; an error is kept until all ranks exchange their errors."""
        self.kept(lambda: Path(path).mkdir(parents=True, exist_ok=exist_ok))

    def save(self, state_dict: Any, path: str) -> None:
        """Write or copy the contents of one file; an error is kept until all ranks exchange their errors."""
        if self.copies:
            self._copied[Path(path)] = self._buffers.copied(state_dict)
        else:
            self.kept(lambda: self._write(state_dict, Path(path)))

    def write(self) -> None:
        """Write the copies; called again, it writes them again."""
        if not self._copied:
            return
        self.written, self.errors, self.full, self.size_bytes = {}, [], False, 0
        for path, state in self._copied.items():
            self.kept(partial(self._write_anew, state, path))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file, which matches the manifest but may have an untrusted author."""
        return read_tensors(path, trust=self._trust, map_location=map_location)

    def commit(self, info: Any) -> bool:
        """Nothing to do: `Checkpointer` commits the whole folder."""
        return True

    def kept(self, action: Callable[[], object]) -> None:
        """Run a disk operation and keep its error until all ranks exchange their errors."""
        try:
            action()
        except (OSError, RuntimeError) as error:
            # torch reports a failed write of its container as a RuntimeError, with the OSError as its context.
            cause = error.__context__ if isinstance(error, RuntimeError) and error.__context__ else error
            self.full |= files.is_full(cause)
            self.errors.append(str(cause))

    def _write_anew(self, state_dict: Any, path: Path) -> None:
        # The folder of an attempt that failed was removed.
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(state_dict, path)

    def _write(self, state_dict: Any, path: Path) -> None:
        file = files.HashingFile(path)
        try:
            torch.save(state_dict, cast("IO[bytes]", file))
            self.written[path] = file.finish()
        except BaseException:
            file.discard()
            raise
        finally:
            self.size_bytes += file.size_bytes
