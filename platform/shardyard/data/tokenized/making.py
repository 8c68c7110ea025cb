"""Making a tokenised set: preparing its folder, the work of one process, and the manifest at the end."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.multimodal.placeholders import model_tokenizer
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource, open_for
from shardyard.data.sources.wording import in_words
from shardyard.data.stream.share import Share
from shardyard.data.tokenized.address import Address, address_of
from shardyard.data.tokenized.layout import (
    Manifest,
    Shard,
    TokenType,
    Unit,
    counts_of,
    finished_shards,
    read_manifest,
    token_type,
)
from shardyard.data.tokenized.rows import EveryRow
from shardyard.data.tokenized.tasks import TASKS, keep_tasks, kept_tasks, parts_of, plan_tasks
from shardyard.data.tokenized.writing import Task, write_task
from shardyard.data.tokenizers.arrays import TokenArrays
from shardyard.data.tokenizers.tokenizer import fingerprint, vocabulary_size
from shardyard.errors import DataError, UsageError
from shardyard.objectives.registry import objective_spec
from shardyard.objectives.spec import ObjectiveSpec
from shardyard.recipe.schema import Recipe, Source
from shardyard.recipe.sources.tokens import MANIFEST

_LOCK = ".lock"


def takes_tokens(spec: ObjectiveSpec) -> bool:
    """Whether the rows of an objective are made of the tokens of plain documents alone."""
    return spec.rows in ("packed", "masked") and set(spec.columns) == {"text"}


def why_not(spec: ObjectiveSpec, inputs: FormatInputs | Recipe) -> str | None:
    """Why rows of this kind cannot be made of tokens alone; None if they can."""
    if not takes_tokens(spec):
        return f"{spec.name} makes its rows from the data itself, not from the tokens of plain documents"
    if spec.rows == "masked" and inputs.masking.whole_word:
        return "masking.whole_word needs the words of a text, which tokenised data does not keep"
    return None


@dataclass(frozen=True)
class Work:
    """What a process needs to tokenise a part of a source. `address` is that of the set, to be the same everywhere."""

    recipe: Recipe
    source: Source
    training: bool
    folder: Path
    address: str
    kind: TokenType


@dataclass(frozen=True)
class Finished:
    """A set that is there already."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Prepared:
    """A set that is to be made: what a process needs, its tasks, and what the manifest says."""

    work: Work
    address: Address
    tasks: tuple[Task, ...]
    vocabulary: int


class _Source:
    """A source as the processes of this set read it."""

    def __init__(self, recipe: Recipe, source: Source, training: bool) -> None:
        self._retry = Retry(recipe.data.retry_seconds)
        self.opened = open_for(objective_spec(recipe.objective), source, training=training, retry=self._retry)
        self.finest = in_words(self.opened.name, self._retry, self.opened.dataset.reshard)
        self.tokenizer = model_tokenizer(recipe)
        self.address = address_of(self.opened, source, fingerprint(self.tokenizer))
        self.arrays = TokenArrays(self.tokenizer)

    def reader(self, unit: int) -> EveryRow:
        """The rows of a unit."""
        part = self.finest.shard(num_shards=self.finest.num_shards, index=unit, contiguous=False)
        return EveryRow(Share(self.opened, 0, 1, part, 1, 0), self._retry)


def prepare_set(recipe: Recipe, source: Source, root: Path, *, training: bool) -> Prepared | Finished:
    """Prepare the folder of a set below `root`, unless it is finished already.

    Raises:
        DataError: the source or the tokenizer cannot be read, or the folder cannot be written.
        UsageError: the objective needs more than the tokens of plain documents.
    """
    spec = objective_spec(recipe.objective)
    if (why := why_not(spec, recipe)) is not None:
        raise UsageError(f"the data of this recipe cannot be tokenised beforehand: {why}.")
    found = _Source(recipe, source, training)
    folder = (root / found.address.folder_name).absolute()
    if (folder / MANIFEST).is_file():
        return Finished(folder, read_manifest(folder))
    vocabulary = vocabulary_size(found.tokenizer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tasks = kept_tasks(folder)
        if tasks is None:
            tasks = plan_tasks(parts_of(found.opened, found.finest), found.finest)
            keep_tasks(folder, tasks)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}; give another folder with --to.") from error
    work = Work(recipe, source, training, folder, found.address.digest, token_type(vocabulary))
    return Prepared(work, found.address, tuple(tasks), vocabulary)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process makes this set meanwhile; the lock ends with the process, however it ends.

    Raises:
        UsageError: another one does.
    """
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is making {folder}; wait for it, or stop it.") from error
        except OSError:
            pass  # a file system without locks
        yield


@functools.lru_cache(maxsize=2)
def _source_of(folder: Path, address: str) -> list[_Source]:
    """The opened source of a set, one for all tasks of a process; empty before the first."""
    return []


def run_task(work: Work, task: Task) -> list[Shard]:
    """Tokenise one task in this process; finished shards of it are kept.

    Raises:
        DataError: the source is not the same here, cannot be read, or the files cannot be written.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # One process for each core, not all cores in each.
    kept = _source_of(work.folder, work.address)
    if not kept:
        kept.append(_Source(work.recipe, work.source, work.training))
    source = kept[0]
    if source.address.digest != work.address:
        raise DataError(
            f"{source.opened.name} differs on this machine, or was changed meanwhile: all machines must see the same "
            "files with the same times of change, and the same tokenizer."
        )
    if not (work.folder / TASKS).is_file():
        raise DataError(
            f"{work.folder} is not the same folder on this machine: give one that all machines share with --to."
        )
    done = [shard for shard in finished_shards(work.folder) if shard.task == task.number]
    return write_task(work.folder, task, done, source.reader, source.arrays.encode, work.kind)


def finish_set(prepared: Prepared, seconds: float) -> Manifest:
    """Write the manifest of a set whose tasks are done, which makes it visible.

    Raises:
        DataError: a task is not done, or the manifest cannot be written.
    """
    work, shards = prepared.work, finished_shards(prepared.work.folder)
    done = {shard.task for shard in shards if shard.is_last}
    if missing := [task.number for task in prepared.tasks if task.number not in done]:
        raise DataError(f"{work.folder}: {len(missing)} parts are not done; call the same command again.")
    opened = _Source(work.recipe, work.source, work.training)
    address = prepared.address
    manifest = Manifest(
        address=address.digest,
        token_type=work.kind,
        tokenizer=work.recipe.tokenizer,
        tokenizer_sha256=address.tokenizer_sha256,
        vocabulary=prepared.vocabulary,
        source={"name": address.name, **address.source},
        options=address.options,
        counts=counts_of(shards),
        units=_units(opened.opened, opened.finest, shards),
        shards=tuple(shards),
        seconds=seconds,
    )
    try:
        manifest.save(work.folder)
    except OSError as error:
        raise DataError(f"{work.folder} cannot be written: {error}. The finished shards are kept.") from error
    for name in (TASKS, _LOCK, *(f"{shard.name}.json" for shard in shards)):
        with contextlib.suppress(OSError):
            (work.folder / name).unlink()
    return manifest


def _units(opened: OpenSource, finest: Any, shards: Sequence[Shard]) -> tuple[Unit, ...]:
    parts = parts_of(opened, finest)
    runs = [run for shard in shards for run in shard.runs]
    rows = {unit: sum(run.rows for run in own) for unit, own in groupby(runs, lambda run: run.unit)}
    return tuple(Unit(part.file, part.row_group, part.shard, rows.get(number, 0)) for number, part in enumerate(parts))
