"""Saving and restoring the whole state of a run, on all ranks together.

An error on one rank must not leave the others waiting in a collective: every rank notes its own errors, all ranks meet,
and all of them decide the same.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import deepspeed
import numpy
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from shardyard.engine import checkpoint_files as files
from shardyard.engine.world import Rank, from_first, gather
from shardyard.errors import CheckpointError, ShardyardError

ENGINE_TAG = "engine"


class WholeCheckpointEngine(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's interface for writing files, with hashing and syncing, and errors that are kept for later."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "shardyard"
        self.written: dict[Path, files.FileEntry] = {}
        self.errors: list[str] = []

    def create(self, info: Any) -> None:
        """Forget the previous checkpoint."""
        self.written, self.errors = {}, []

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create the folder of a checkpoint; a failure is kept for later like any other."""
        self._kept(lambda: Path(path).mkdir(parents=True, exist_ok=True))

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file; an error is kept and told when all ranks meet."""
        self._kept(lambda: self._write(state_dict, Path(path)))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file. It was verified against the manifest, which is why unpickling it is safe enough."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: Any) -> bool:
        """Nothing to do: `save` commits the whole folder."""
        return True

    def _write(self, state_dict: Any, path: Path) -> None:
        file = files.HashingFile(path)
        try:
            torch.save(state_dict, cast("IO[bytes]", file))
            self.written[path] = file.finish()
        except BaseException:
            file.discard()
            raise

    def _kept(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, RuntimeError) as error:
            # torch reports a failed write of its container as a RuntimeError, with the OSError as its context.
            self.errors.append(str(error.__context__ or error))


@dataclass(frozen=True)
class TrainerState:
    """What the loop needs to go on: the step that is done, and what hooks remember (JSON-able)."""

    step: int
    tokens: int
    hooks: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """One written checkpoint."""

    path: Path
    step: int
    size_bytes: int
    seconds: float


class Checkpointer:
    """Writes and reads the checkpoints of one run."""

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, folder: Path, rank: Rank, *, keep: int, facts: dict[str, Any]
    ):
        self._engine = engine
        self._files = WholeCheckpointEngine()
        engine.checkpoint_engine = self._files
        # DeepSpeed copies conversion scripts beside each checkpoint; they would be outside the manifest.
        engine._copy_recovery_script = lambda save_path: None
        self.folder = folder
        self._rank = rank
        self._keep = keep
        self._facts = {"world_size": rank.world_size, **facts}
        if rank.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            files.remove_partial(folder)

    def save(self, state: TrainerState, lanes: dict[str, Any]) -> Saved:
        """Write one checkpoint; all ranks call this.

        Args:
            state: where the loop stands.
            lanes: states of this rank's data lanes, which belong to the batches consumed.

        Raises:
            CheckpointError: on every rank, when any of them could not write; nothing is left behind.
        """
        started = time.monotonic()
        partial = files.partial_folder(self.folder, state.step)
        self._engine.save_checkpoint(str(partial), tag=ENGINE_TAG, save_latest=False)
        self._files._kept(lambda: self._note(partial / f"rank-{self._rank.rank:05d}.json", _random_states()))
        everything = gather((lanes, self._files.errors, self._entries(partial)), self._rank)
        errors = [f"rank {rank}: {text}" for rank, (_, texts, _) in enumerate(everything) for text in texts]
        outcome: Saved | str = "\n".join(errors)
        if self._rank.is_first:
            outcome = outcome or self._commit(partial, state, everything, started)
            if isinstance(outcome, str):
                shutil.rmtree(partial, ignore_errors=True)
        outcome = from_first(outcome, self._rank)
        if isinstance(outcome, str):
            raise CheckpointError(f"the checkpoint of step {state.step} could not be written: {outcome}")
        return outcome

    def _note(self, path: Path, value: Any) -> None:
        self._files.written[path] = files.write_json(path, value)

    def _entries(self, partial: Path) -> dict[str, files.FileEntry]:
        return {path.relative_to(partial).as_posix(): entry for path, entry in self._files.written.items()}

    def _commit(self, partial: Path, state: TrainerState, everything: list[Any], started: float) -> Saved | str:
        lanes = {lane: value for shares, _, _ in everything for lane, value in shares.items()}
        entries = {name: entry for _, _, written in everything for name, entry in written.items()}
        try:
            entries["data.json"] = files.write_json(partial / "data.json", lanes)
            entries["trainer.json"] = files.write_json(partial / "trainer.json", state.__dict__)
            path = files.commit(self.folder, state.step, entries, **self._facts)
            files.rotate(self.folder, self._keep)
        except OSError as error:
            return f"rank 0: {error}"
        size = sum(entry.size_bytes for entry in entries.values())
        return Saved(path, state.step, size, time.monotonic() - started)

    def restore(self, warn: Callable[[str], None]) -> tuple[TrainerState, dict[str, Any]] | None:
        """Load the newest whole checkpoint; all ranks call this.

        Args:
            warn: told of each checkpoint that is passed over because it is damaged.

        Returns:
            Where the loop stands and the states of all data lanes, or None when there is no checkpoint.

        Raises:
            CheckpointError: a checkpoint is there, but of another world, stage or precision; or all are damaged.
        """
        candidates = from_first(files.whole_checkpoints(self.folder), self._rank)
        damaged: list[Path] = []
        for folder in reversed(candidates):
            damage = self._damage(folder)
            if damage:
                warn(f"checkpoint {folder.name} is passed over: {damage}")
                damaged.append(folder)
                continue
            loaded = self._load(folder)
            if self._rank.is_first:
                for bad in damaged:
                    files.set_aside(bad)
            return loaded
        if candidates:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole; restore one from a backup or start a new run"
            )
        return None

    def _damage(self, folder: Path) -> str:
        try:
            manifest = files.read_manifest(folder)
            bad = files.damaged_files(folder, manifest, part=self._rank.rank, parts=self._rank.world_size)
            found = f"{', '.join(bad)} differ{'s' if len(bad) == 1 else ''} from the manifest" if bad else ""
        except CheckpointError as error:
            found = str(error)
        return "; ".join(sorted({text for text in gather(found, self._rank) if text}))

    def _load(self, folder: Path) -> tuple[TrainerState, dict[str, Any]]:
        manifest = files.read_manifest(folder)
        for key, value in self._facts.items():
            if manifest.get(key) != value:
                raise CheckpointError(
                    f"{folder} was written with {key} {manifest.get(key)}, this run has {value}; "
                    f"resume with the same {key}, or start a new run"
                )
        loaded, _ = self._engine.load_checkpoint(str(folder), tag=ENGINE_TAG)
        if loaded is None:
            raise ShardyardError(f"DeepSpeed could not load {folder}")
        _set_random_states(json.loads((folder / f"rank-{self._rank.rank:05d}.json").read_text()))
        state = TrainerState(**json.loads((folder / "trainer.json").read_text()))
        return state, json.loads((folder / "data.json").read_text())


def _random_states() -> dict[str, Any]:
    """State of every generator that dropout or user code draws from, as JSON."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast("tuple[Any, ...]", numpy.random.get_state(legacy=True))
    states = {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": _pack(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = _pack(torch.cuda.get_rng_state())
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(_unpack(states["torch"]))
    if "cuda" in states:
        torch.cuda.set_rng_state(_unpack(states["cuda"]))


def _pack(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def _unpack(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
