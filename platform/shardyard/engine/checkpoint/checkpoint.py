"""Saving and restoring the whole state of a run, on all ranks together.

An error on one rank must not leave the others waiting in a collective: every rank records its errors, all ranks
exchange them, and all make the same decision.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import deepspeed

from shardyard.data.stream.streams import StreamStates
from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import FileEntry
from shardyard.engine.checkpoint.elsewhere import States, read_states
from shardyard.engine.checkpoint.explosion import not_finite, own_parts
from shardyard.engine.checkpoint.filling import fill, trained_names
from shardyard.engine.checkpoint.of_ranks import Sources
from shardyard.engine.checkpoint.random_states import RandomStates, continue_random, random_states
from shardyard.engine.checkpoint.shard_files import ShardFiles
from shardyard.engine.checkpoint.shards import ENGINE_TAG, Shards, file_of_rank
from shardyard.engine.checkpoint.task import Task
from shardyard.engine.checkpoint.tensor_files import refusal
from shardyard.engine.deepspeed.quirks import leave_scripts_out
from shardyard.engine.hooks.base import HookState
from shardyard.engine.mesh import Mesh, separate
from shardyard.engine.offload.quirks import swaps
from shardyard.errors import CheckpointError, ShardyardError
from shardyard.tracking.run.folder import typed
from shardyard.units import format_bytes


@dataclass(frozen=True)
class TrainerState:
    """The state of the loop: the last step, and the state of hooks (JSON)."""

    step: int
    tokens: int
    hooks: Mapping[str, HookState]


@dataclass(frozen=True)
class Saved:
    """One written checkpoint.

    seconds: from the start to the commit; paused_seconds: for how long of it training stood still. removed: names of
    older ones that were removed to make room.
    """

    path: Path
    step: int
    size_bytes: int
    seconds: float
    paused_seconds: float = 0.0
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Contents:
    """What is in a checkpoint besides the shards of this rank."""

    state: TrainerState
    streams: StreamStates
    random: RandomStates


@dataclass(frozen=True)
class _Share:
    """What one rank tells the others of its file."""

    streams: StreamStates
    errors: tuple[str, ...]
    entry: FileEntry | None
    members: tuple[str, ...]
    codes: frozenset[int]
    size_bytes: int
    spoiled: tuple[str, ...]


@dataclass(frozen=True)
class _NotSaved:
    """Why a checkpoint of `size_bytes` could not be written: the error of each rank, and their numbers (`errno`).

    spoiled: names of weights that are not finite; nothing is wrong with the disk then.
    """

    text: str
    codes: frozenset[int]
    size_bytes: int
    spoiled: tuple[str, ...] = ()


class SpoiledError(CheckpointError):
    """Weights are not finite; their checkpoint was begun beside training and is not kept."""


class Checkpointer:
    """Writes and reads the checkpoints of one run."""

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        folder: Path,
        mesh: Mesh,
        *,
        keep: int,
        keep_damaged: int | None = None,
        metadata: Mapping[str, object],
        background: bool = False,
        may_write: Callable[[], None] = lambda: None,
        faster_b: bool = False,
        trust: bool = False,
    ):
        """
        Args:
            background: training goes on while files are written, from a copy of the states in host memory.
            may_write: raises if another process has taken over the run.
            faster_b: whether the B of adapters form a group of the optimizer.
        """
        self._engine = engine
        self._files = ShardFiles()
        engine.checkpoint_engine = self._files
        leave_scripts_out(engine)
        self.folder = folder
        self._mesh = mesh
        # The ranks agree beside training too, where collectives of both could meet in another order on each rank.
        self._agreeing = separate(mesh.world) if background else mesh.world
        self._keep, self._keep_damaged = keep, keep_damaged
        self.background = background
        self._may_write = may_write
        self._faster_b = faster_b
        self._trust = trust
        self._layout = mesh.shape.layout()
        self._metadata = {**self._layout, **metadata}
        self._last_size_bytes = 0
        self._task: Task[Saved | _NotSaved] | None = None
        self._paused_seconds = self._checked_seconds = 0.0
        if mesh.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            files.remove_partial(folder)

    def begin(self, state: TrainerState, streams: StreamStates) -> None:
        """Start to write a checkpoint; all ranks call this, and `finish` before they call it again.

        Args:
            state: the state of the loop.
            streams: states of this rank's data streams after the consumed batches.
        """
        assert self._task is None, "the checkpoint before is finished first"
        started = time.monotonic()
        contents = _Contents(state, streams, random_states())
        if self.background:
            self._collect(state.step)
            self._files.copy(json.dumps(contents.random), own_parts(self._engine.module))
        self._task = Task(lambda: self._write(contents, started), background=self.background)
        self._paused_seconds = self._checked_seconds + time.monotonic() - started

    @property
    def written(self) -> bool:
        """Whether `finish` would not wait for this rank."""
        return self._task is not None and self._task.done

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint was begun and not finished."""
        return self._task is not None

    def finish(self) -> Saved:
        """Wait until the checkpoint that was begun is written. If the disk is full, older ones are removed.

        Raises:
            CheckpointError: on every rank, if one rank could not write; nothing is left behind.
            SpoiledError: on every rank, if one has weights that are not finite. Only with `background`.
        """
        assert self._task is not None, "a checkpoint was begun"
        task, self._task = self._task, None
        started = time.monotonic()
        try:
            outcome = task.result()
        finally:
            self._files.drop()
        if isinstance(outcome, _NotSaved):
            raise SpoiledError(outcome.text) if outcome.spoiled else CheckpointError(outcome.text)
        self._last_size_bytes = outcome.size_bytes
        return replace(outcome, paused_seconds=self._paused_seconds + time.monotonic() - started)

    def save(self, state: TrainerState, streams: StreamStates) -> Saved:
        """`begin` and `finish`."""
        self.begin(state, streams)
        return self.finish()

    def _write(self, contents: _Contents, started: float) -> Saved | _NotSaved:
        """Write until it succeeds, or no room is left."""
        step = contents.state.step
        # Make room before the disk is full, which would affect other programs; and again if it is full nevertheless.
        removed = self._make_room(self._last_size_bytes) if self._is_short() else []
        while isinstance(outcome := self._try(contents, started), _NotSaved):
            if outcome.spoiled:
                return replace(outcome, text=spoiled_text(step, outcome.spoiled))
            freed = self._make_room(outcome.size_bytes) if files.says_full(outcome.codes) else []
            if not freed:
                return replace(outcome, text=self._refusal(step, outcome))
            removed += freed
        return replace(outcome, removed=tuple(removed))

    def _collect(self, step: int) -> None:
        """Let DeepSpeed write its shards, or copy them."""
        self._engine.save_checkpoint(str(files.partial_folder(self.folder, step)), tag=ENGINE_TAG, save_latest=False)

    def spoiled_weights(self) -> list[str]:
        """Names of weights that are not finite on some rank; all ranks call this before `begin`. With `background`
        there are none: what was copied is looked at beside training (`finish`)."""
        if self.background:
            return []
        started = time.monotonic()
        spoiled = self._mesh.world.gather(not_finite(own_parts(self._engine.module)))
        self._checked_seconds = time.monotonic() - started
        return sorted({name for names in spoiled for name in names})

    def _try(self, contents: _Contents, started: float) -> Saved | _NotSaved:
        partial = files.partial_folder(self.folder, contents.state.step)
        if not self.background:
            self._collect(contents.state.step)
        own = self._files
        own.write(partial / file_of_rank(self._mesh.rank), json.dumps(contents.random))
        codes = frozenset(own.codes)
        share = _Share(
            contents.streams, tuple(own.errors), own.entry, tuple(own.members), codes, own.size_bytes, own.spoiled
        )
        everything = self._agreeing.gather(share)
        errors = [f"rank {rank}: {text}" for rank, share in enumerate(everything) for text in share.errors]
        codes = frozenset().union(*(one.codes for one in everything))
        size_bytes = sum(one.size_bytes for one in everything)
        spoiled = tuple(sorted({name for one in everything for name in one.spoiled}))
        outcome: Saved | _NotSaved | None = None
        if errors or spoiled:
            outcome = _NotSaved("\n".join(errors), codes, size_bytes, spoiled)
        if self._mesh.is_first:
            outcome = outcome or self._commit(partial, contents.state, everything, started)
            if isinstance(outcome, _NotSaved):
                shutil.rmtree(partial, ignore_errors=True)
        return cast("Saved | _NotSaved", self._agreeing.from_first(outcome))

    def _is_short(self) -> bool:
        """Whether there is less space than the last checkpoint took."""
        short = self._mesh.is_first and files.free_bytes(self.folder) < self._last_size_bytes
        return bool(self._agreeing.from_first(short))

    def _make_room(self, needed_bytes: int) -> list[str]:
        removed = files.make_room(self.folder, needed_bytes) if self._mesh.is_first else []
        return cast("list[str]", self._agreeing.from_first([path.name for path in removed]))

    def _refusal(self, step: int, failed: _NotSaved) -> str:
        text = f"the checkpoint of step {step} could not be written: {failed.text}"
        run = typed(self.folder.parent)
        then = (
            f"then `shardyard resume {run}` continues from the last good checkpoint, and `shardyard export {run} "
            "FOLDER` writes its model elsewhere."
        )
        if not files.says_full(failed.codes):
            advice = files.what_to_do(failed.codes)
            return f"{text}\n{advice}, or put runs on another disk with --runs-dir; {then}" if advice else text
        free = self._agreeing.from_first(files.free_bytes(self.folder) if self._mesh.is_first else 0)
        return (
            f"{text}\n{self.folder} needs {format_bytes(failed.size_bytes)} for it and has {format_bytes(free)} free. "
            f"Free some space there, or keep fewer checkpoints (checkpoint.keep is {self._keep}; on full disks older "
            f"ones are removed, except the last good one), or put runs on another disk with --runs-dir; {then}"
        )

    def _commit(
        self, partial: Path, state: TrainerState, everything: list[_Share], started: float
    ) -> Saved | _NotSaved:
        streams = {stream: value for share in everything for stream, value in share.streams.items()}
        entries = {file_of_rank(rank): share.entry for rank, share in enumerate(everything) if share.entry}
        members = {file_of_rank(rank): share.members for rank, share in enumerate(everything)}
        size_bytes = sum(entry.size_bytes for entry in entries.values())
        try:
            self._may_write()
            entries["data.json"] = files.write_json(partial / "data.json", streams)
            entries["trainer.json"] = files.write_json(partial / "trainer.json", state.__dict__)
            files.sync_records(self.folder.parent)
            path = files.commit(self.folder, state.step, entries, members=members, good=True, **self._metadata)
            files.rotate(self.folder, self._keep, keep_damaged=self._keep_damaged, wait=False)
        except (OSError, ShardyardError) as error:
            text = files.located(error, partial) if isinstance(error, OSError) else str(error)
            code = getattr(error, "errno", None)
            return _NotSaved(f"rank 0: {text}", frozenset({code} if code else ()), size_bytes)
        size_bytes = sum(entry.size_bytes for entry in entries.values())
        return Saved(path, state.step, size_bytes, time.monotonic() - started)

    def restore(self, warn: Callable[[str], None]) -> tuple[TrainerState, StreamStates] | None:
        """Load the newest good checkpoint; all ranks call this.

        Args:
            warn: called with a message for each checkpoint that is skipped.

        Returns:
            The state of the loop and of all data streams, or None if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint has another precision, or contains code; or none is good.
        """
        candidates = self._mesh.from_first(files.committed_checkpoints(self.folder))
        passed: list[tuple[Path, Callable[[Path], Path | None]]] = []
        for folder in reversed(candidates):
            damage = self._damage(folder)
            why = damage or files.bad_because(folder)
            if why:
                warn(f"checkpoint {folder.name} is skipped: {why}")
                passed.append((folder, files.set_aside if damage else files.put_by))
                continue
            loaded = self._load(folder)
            if self._mesh.is_first:
                for bad, moved in passed:
                    moved(bad)
            return loaded
        if candidates:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is usable; restore one from a backup, or `shardyard resume "
                f"{typed(self.folder.parent)} --step 0` starts from the beginning"
            )
        return None

    def _damage(self, folder: Path) -> str:
        try:
            manifest = files.read_manifest(folder)
            bad = files.damaged_files(folder, manifest, part=self._mesh.rank, parts=self._mesh.world.size)
            found = f"{', '.join(bad)} differ{'s' if len(bad) == 1 else ''} from the manifest" if bad else ""
        except CheckpointError as error:
            found = str(error)
        return "; ".join(sorted({text for text in self._mesh.world.gather(found) if text}))

    def _load(self, folder: Path) -> tuple[TrainerState, StreamStates]:
        manifest = files.read_manifest(folder)
        known: Mapping[str, object] = manifest
        # Older checkpoints without an axis have one rank along it.
        written = {key: known.get(key, 1 if key in self._layout else None) for key in self._metadata}
        differs = [key for key, value in self._metadata.items() if written[key] != value]
        for key in differs:
            if key != "zero_stage" and key not in self._layout:
                raise CheckpointError(
                    f"{folder} was written with {key} {written[key]}, this run has {self._metadata[key]}; "
                    f"resume with the same {key}, or start a new run"
                )
        shards = Shards(folder, manifest, trust=self._trust)
        self._refuse_code(shards)
        moved = [key for key in differs if key in self._layout]
        if written["zero_stage"] == self._metadata["zero_stage"] == 0 and "tensor_parallel" not in differs:
            differs = []
        if differs or swaps(self._engine):
            self._load_elsewhere(shards, manifest)
        else:
            self._load_same(shards)
        self._continue_random(shards, manifest, moved=bool(moved))
        state = TrainerState(**json.loads((folder / "trainer.json").read_text()))
        return state, json.loads((folder / "data.json").read_text())

    def _continue_random(self, shards: Shards, manifest: files.Manifest, *, moved: bool) -> None:
        """Ranks that compute the same tokens draw the same masks: those with one index along `zero`."""
        if not moved:
            continue_random(shards, self._mesh.rank)
            return
        split = manifest.get("tensor_parallel", 1)
        index, others = self._mesh.zero.index, int(manifest["world_size"]) // split
        continue_random(shards, index % others * split, index if index >= others else None)

    def _load_same(self, shards: Shards) -> None:
        """Let DeepSpeed load what the same number of ranks wrote at the same stage."""
        self._files.source = shards
        try:
            with shards.as_files() as folder:
                loaded, _ = self._engine.load_checkpoint(str(folder), tag=ENGINE_TAG)
        finally:
            self._files.source = None
        if loaded is None:
            raise ShardyardError(f"DeepSpeed could not load {shards.folder}")

    def _load_elsewhere(self, shards: Shards, manifest: files.Manifest) -> None:
        """Load what was written at another ZeRO stage, on another number of ranks or with other axes; all ranks call
        this."""
        names = trained_names(self._engine.module, faster_b=self._faster_b)
        sources = Sources(self._engine.module)
        stored: States | None = None
        problem = ""
        try:
            whole = read_states(shards, manifest, sources.names(names), in_order=not sources.layers)
            stored = sources.on_rank(whole, self._mesh)
        # Whatever is wrong with the files that this rank reads, the others must hear of it instead of waiting.
        except (CheckpointError, OSError, LookupError) as error:
            problem = str(error) if isinstance(error, CheckpointError) else f"{shards.folder} cannot be read: {error!r}"
        problems = [text for text in self._mesh.world.gather(problem) if text]
        if problems or stored is None:
            raise CheckpointError(problems[0])
        fill(self._engine, stored, names, self._mesh)

    def _refuse_code(self, shards: Shards) -> None:
        """Reject checkpoints that contain code. All ranks check before any of them reads, so that none waits for one
        that has raised."""
        if self._trust:
            return
        found = self._mesh.world.gather(shards.code(self._mesh.rank, self._mesh.world.size))
        names = sorted({name for names in found for name in names})
        if names:
            raise CheckpointError(refusal(str(shards.folder), names))


def spoiled_text(step: int, names: Sequence[str]) -> str:
    """What is said of weights that are not finite, with the first few of their names."""
    return f"weights are not finite after step {step} ({', '.join(names[:3])})"
