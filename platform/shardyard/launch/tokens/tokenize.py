"""Tokenising the sources of a recipe: what is finished is found, what was begun goes on."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shardyard.data.sources.sources import source_name
from shardyard.data.stream.held_out import validation_sources
from shardyard.data.tokenized.layout import Counts, Manifest, Shard, counts_of, read_manifest
from shardyard.data.tokenized.making import Prepared, finish_set, locked, prepare_set
from shardyard.data.whole_files import remove_partial
from shardyard.errors import DataError
from shardyard.launch.ray.cluster import ray_cluster
from shardyard.launch.ray.token_tasks import on_ray
from shardyard.launch.tokens.processes import Call, on_processes
from shardyard.recipe.schema import Recipe, Source
from shardyard.recipe.sources.token_sets import recognised_tokens, tokenized_root
from shardyard.recipe.sources.tokens import MANIFEST

Carry = Callable[[Sequence[Call]], Iterator[str | None]]


@dataclass(frozen=True)
class Progress:
    """Of one source: what its finished shards hold, and the number of its tasks."""

    source: str
    counts: Counts
    tasks_done: int
    tasks: int


@dataclass(frozen=True)
class Made:
    """A finished set. `is_new` if this call has made a part of it; `seconds` of this call."""

    source: str
    folder: Path
    manifest: Manifest
    is_new: bool
    seconds: float


def tokenize(
    recipe: Recipe,
    report: Callable[[Progress], None],
    *,
    root: Path | None = None,
    local: bool = False,
    workers: int | None = None,
) -> list[Made]:
    """Tokenise the sources of training and validation that are texts.

    Args:
        root: where sets are written; by default the cache folder, in which launches find them.
        local: with processes of this machine, without Ray.
        workers: processes at a time; by default one for each core.

    Raises:
        DataError: a source cannot be read, or a set cannot be written; finished shards are kept.
        UsageError: the objective needs more than tokens, or another process makes the same set.
    """
    made: dict[Path, Made] = {}
    unfinished: list[tuple[str, Prepared]] = []
    for source, training in _sources(recipe):
        found = prepare_set(recipe, source, root or tokenized_root(), training=training)
        if isinstance(found, Prepared):
            if all(found.work.folder != other.work.folder for _, other in unfinished):
                unfinished.append((source_name(source), found))
        else:
            made.setdefault(found.folder, Made(source_name(source), found.folder, found.manifest, False, 0.0))
    if unfinished:
        with _carrier(recipe, local=local, workers=workers) as carry:
            for name, prepared in unfinished:
                made[prepared.work.folder] = _make(name, prepared, carry, report)
    return list(made.values())


def _sources(recipe: Recipe) -> Iterator[tuple[Source, bool]]:
    for training, sources in ((True, recipe.data.train), (False, validation_sources(recipe.data))):
        for source in sources:
            if recognised_tokens(source, training=training) is None:
                yield source, training


@contextmanager
def _carrier(recipe: Recipe, *, local: bool, workers: int | None) -> Iterator[Carry]:
    if local:
        number = workers or len(os.sched_getaffinity(0))
        yield lambda calls: on_processes(calls, min(number, max(1, len(calls))))
        return
    with ray_cluster(recipe.cluster):
        yield lambda calls: on_ray(calls, workers)


def _make(name: str, prepared: Prepared, carry: Carry, report: Callable[[Progress], None]) -> Made:
    folder, started = prepared.work.folder, time.monotonic()
    with locked(folder):
        if (folder / MANIFEST).is_file():
            return Made(name, folder, read_manifest(folder), False, 0.0)
        remove_partial(folder)
        seen = _Seen(folder)
        seen.look()
        done = {shard.task for shard in seen.shards.values() if shard.is_last}
        calls = [Call(prepared.work, task) for task in prepared.tasks if task.number not in done]
        problem = None
        with contextlib.closing(carry(calls)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                seen.look()
                report(seen.progress(name, len(prepared.tasks)))
                problem = problem or outcome
                if problem is not None:
                    break
        if problem is not None:
            raise DataError(problem)
        seconds = time.monotonic() - started
        return Made(name, folder, finish_set(prepared, seconds), True, seconds)


@dataclass
class _Seen:
    """The finished shards of a folder, each of which is read once."""

    folder: Path
    shards: dict[str, Shard] = field(default_factory=dict)

    def look(self) -> None:
        for path in self.folder.glob("[0-9]*.json"):
            if path.name not in self.shards and not path.name.endswith(".problems.json"):
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                    self.shards[path.name] = Shard.of(json.loads(path.read_text(encoding="utf-8")))

    def progress(self, name: str, tasks: int) -> Progress:
        shards = list(self.shards.values())
        return Progress(name, counts_of(shards), sum(shard.is_last for shard in shards), tasks)
