"""DeepSpeed's shards as one file a rank: written at once or, from a copy in host memory, while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import Tensor

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import FileEntry, discard, written
from shardyard.engine.checkpoint.explosion import not_finite
from shardyard.engine.checkpoint.rank_file import RankFile, rank_file
from shardyard.engine.checkpoint.shards import ENGINE_TAG, Shards
from shardyard.engine.checkpoint.snapshot import HostImage
from shardyard.errors import CheckpointError


class ShardFiles(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's interface for writing files: what it writes in several becomes one, with deferred errors.

    `write` is called before training goes on, or `copy`, and `write` beside training. `errors`, `codes`: what went
    wrong, as text and as numbers of the system (`errno`); `size_bytes`: the size of the file, written or not.
    `spoiled`: names of copied weights that are not finite. `source`: the checkpoint that DeepSpeed reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "shardyard"
        self.source: Shards | None = None
        self._image = HostImage()
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
        self._copied: Tensor | None = None
        self._weights: dict[str, Tensor] = {}
        self.spoiled: tuple[str, ...] = ()
        self._names: set[str] = set()
        self._states.clear()

    @property
    def members(self) -> list[str]:
        """Names of the files that DeepSpeed would have written on this rank."""
        return sorted(self._names)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create the folder of a checkpoint; an error is kept until all ranks exchange their errors."""
        folder = Path(path)
        folder = folder.parent if folder.name == ENGINE_TAG else folder
        self.kept(lambda: folder.mkdir(parents=True, exist_ok=True), folder)

    def save(self, state_dict: Any, path: str) -> None:
        """Take the contents of one of DeepSpeed's files."""
        self._names.add(Path(path).name)
        self._states[Path(path).name] = state_dict

    def copy(self, random: str, weights: Mapping[str, Tensor]) -> None:
        """Copy the states to host memory; `write` reports what could not be copied.

        Args:
            random: the rank's random states, as text.
            weights: the rank's weights by name, whose copies `write` looks at.
        """
        try:
            file = rank_file(self._states, random)
            image = self._image.copied(file)
        except CheckpointError as error:
            self._uncopied = str(error)
        # torch reports a lack of memory as a RuntimeError; the other ranks must not wait for this one.
        except (RuntimeError, MemoryError, OSError) as error:
            self._uncopied = f"its states could not be copied to host memory: {error}"
        else:
            self._copied = image
            self._take_weights(file, weights)
            self._states.clear()

    def _take_weights(self, file: RankFile, weights: Mapping[str, Tensor]) -> None:
        """What a checkpoint holds of weights is looked at where it was copied to, the rest (under ZeRO-3 their master
        weights are kept) at once."""
        assert self._copied is not None, "the states are copied"
        places = {name: file.place_of(weight) for name, weight in weights.items()}
        self._weights = {
            name: self._copied[at : at + weights[name].nbytes].view(weights[name].dtype)
            for name, at in places.items()
            if at is not None
        }
        self.spoiled = tuple(not_finite({name: weights[name] for name, at in places.items() if at is None}))

    def write(self, path: Path, random: str) -> None:
        """Write the rank's file, anew if it is called again; an error is kept until all ranks exchange their errors.
        A copy with weights that are not finite is not written.

        Args:
            random: the rank's random states, as text; a copy has them already.
        """
        self._forget()
        self.spoiled = self.spoiled or tuple(not_finite(self._weights))
        if self.spoiled:
            return
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
        if self._copied is None:
            file = rank_file(self._states, random)
            buffers, self.size_bytes = file.buffers(), file.size_bytes
        else:
            buffers, self.size_bytes = iter([memoryview(cast("Any", self._copied.numpy()))]), self._copied.numel()
        # The folder of an attempt that failed was removed; without it, an error of its making is met here again.
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.entry = written(path, buffers, self.size_bytes)
        except BaseException:
            discard(path)
            raise
