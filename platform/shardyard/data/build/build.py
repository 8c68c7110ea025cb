"""A build from its file to the folder of its output: stages of tasks, comparisons between them, the rename at the end.

Steps that look at single documents run in tasks over pieces of the sources. A step that compares documents ends a
stage: the tasks write hashes, and the driver finds what repeats an earlier document. Everything lies in a hidden folder
beside the output until it is complete, so a build that was killed goes on with the pieces that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq

from shardyard.data.build.card import CARD_VERSION, PAGE, Card, CardSource, CardStep, page, parameters, versions
from shardyard.data.build.counts import EXAMPLES, StepCounts, added_sources, added_steps, no_step, removed
from shardyard.data.build.duplicates import Duplicates, find_duplicates
from shardyard.data.build.files import disk_in_words, held, read_json, write_json
from shardyard.data.build.hashes import hasher
from shardyard.data.build.pieces import Piece, opened, pieces_of
from shardyard.data.build.spec import BuildSpec, LoadedSpec
from shardyard.data.build.tasks import (
    REMOVED,
    PieceResult,
    PieceTask,
    ShardResult,
    ShardTask,
    run_piece,
    stage_file,
    write_shard,
)
from shardyard.data.sources.sources import evaluation_fingerprints, source_name, steps_of
from shardyard.data.whole_files import aside, remove_partial, sync
from shardyard.errors import DataError, UsageError
from shardyard.recipe.sources.files import CARD
from shardyard.units import parse_bytes

# Runs a function for each task, in any processes, and yields the results in the order of the tasks.
Runner = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
Report = Callable[[str, int, int], None]
PLAN = "plan.json"
_REPLACED = "replaced"


@dataclass(frozen=True)
class Built:
    """A finished build; `was_there` if it had been made before."""

    folder: Path
    card: Card
    was_there: bool


def here(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    """A runner in this process."""
    return map(function, tasks)


def build(loaded: LoadedSpec, runner: Runner, report: Report, *, replace_old: bool = False) -> Built:
    """Make the output of a file, or go on where an earlier attempt stopped.

    Raises:
        UsageError: there is something else in the folder, or another process builds it.
        DataError: a source cannot be read, or the disk not written.
    """
    spec, folder = loaded.spec, loaded.folder
    for stage in _stages(spec):
        check_steps(spec, stage)
    identity = identity_of(spec)
    there = read_json(folder / CARD) if folder.is_dir() else None
    if there is not None and there.get("build") == identity:
        return Built(folder, there, was_there=True)
    if folder.exists() and any(folder.iterdir()) and not replace_old:
        raise UsageError(
            f"{folder} is not empty and holds another build or other files; name another folder with --output DIR, or "
            "replace it with --replace."
        )
    work = folder.with_name(f".{folder.name}.building")
    with disk_in_words(folder):
        work.mkdir(parents=True, exist_ok=True)
        with held(work):
            _begin(work, identity, folder)
            card = _make(spec, work, runner, report, identity, loaded.shown)
            _publish(work, folder)
            shutil.rmtree(work, ignore_errors=True)
    return Built(folder, card, was_there=False)


def sample(loaded: LoadedSpec, work: Path, limit: int, report: Report) -> Card:
    """What the steps do to the first `limit` documents of each source; documents are compared among these alone."""
    spec = loaded.spec
    for stage in _stages(spec):
        check_steps(spec, stage)
    steps, results = _run_stages(spec, work, here, report, pieces_of(spec, whole=False), limit)
    return _card(spec, steps, results, [], "sample")


def check_steps(spec: BuildSpec, stage: tuple[int, int]) -> None:
    """Make every function of a stage once, so that what is missing is told before anything starts."""
    steps_of(spec.steps[stage[0] : stage[1]])
    if stage[1] < len(spec.steps):
        hasher(spec.steps[stage[1]])


def identity_of(spec: BuildSpec) -> str:
    """What tells one result from another: the file, the data, and the versions."""
    described = spec.model_dump(mode="json", exclude={"output": {"folder"}})
    prints = [dict(opened(source.model_dump_json()).fingerprint) for source in spec.sources]
    evaluations = evaluation_fingerprints(spec.steps)
    text = json.dumps([CARD_VERSION, described, prints, evaluations, versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _begin(work: Path, identity: str, folder: Path) -> None:
    """Remove what an attempt at something else has left. An earlier output that was just being replaced comes back."""
    if (work / _REPLACED).is_dir() and not folder.exists():
        os.replace(work / _REPLACED, folder)
    if read_json(work / PLAN) != identity:
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        write_json(work / PLAN, identity)


def _make(spec: BuildSpec, work: Path, runner: Runner, report: Report, identity: str, shown: str) -> Card:
    pieces = pieces_of(spec)
    steps, results = _run_stages(spec, work, runner, report, pieces, None)
    last = len(_stages(spec)) - 1
    files = _write_files(spec, work, last, results, runner, report)
    if not files:
        raise DataError(f"the steps of {spec.name} leave no document; look at what each removes with --plan.")
    card = _card(spec, steps, results, files, identity)
    out = work / "out"
    remove_partial(out / "data")
    for name in out.glob("data/.*.json"):
        name.unlink()
    write_json(out / CARD, card)
    with aside(out / PAGE) as path:
        path.write_text(page(card, shown), encoding="utf-8")
    return card


def _stages(spec: BuildSpec) -> list[tuple[int, int]]:
    """Steps of each stage, as the first and the one after the last; that one compares documents, if there is one."""
    bounds = [number for number, step in enumerate(spec.steps) if step.compares]
    firsts = [0, *(bound + 1 for bound in bounds)]
    return list(zip(firsts, [*bounds, len(spec.steps)], strict=True))


def _run_stages(
    spec: BuildSpec, work: Path, runner: Runner, report: Report, pieces: Sequence[Piece], limit: int | None
) -> tuple[list[CardStep], list[PieceResult]]:
    """Every stage; the counts of all steps, and the results of the last with the sources of the first."""
    text = spec.model_dump_json()
    steps: list[CardStep] = []
    sources: list[PieceResult] = []
    results: list[PieceResult] = []
    for stage, (first, last) in enumerate(_stages(spec)):
        (work / f"stage-{stage}").mkdir(exist_ok=True)
        tasks = [
            PieceTask(text, str(work), stage, first, last, number, piece, limit) for number, piece in enumerate(pieces)
        ]
        results = _reported(runner(run_piece, tasks), len(tasks), _title(spec, first, last), report)
        sources = sources or results
        for number in range(first, last):
            counts = added_steps(result["steps"][str(number)] for result in results)
            steps.append(_card_step(spec, number, counts))
        if last < len(spec.steps):
            report(spec.steps[last].name, 0, 1)
            steps.append(_compare(spec, work, stage, last, len(pieces)))
            report(spec.steps[last].name, 1, 1)
            _forget(work, stage - 1)
    return steps, [_with_source(result, one) for result, one in zip(results, sources, strict=True)]


def _with_source(result: PieceResult, first: PieceResult) -> PieceResult:
    """The result of the last stage with what was read in the first."""
    kept = {"kept": result["num_documents"], "kept_bytes": result["num_bytes"]}
    return cast(PieceResult, {**result, "source": {**first["source"], **kept}})


def _reported(results: Iterable[Any], number: int, title: str, report: Report) -> list[Any]:
    report(title, 0, number)
    found = []
    for result in results:
        found.append(result)
        report(title, len(found), number)
    return found


def _title(spec: BuildSpec, first: int, last: int) -> str:
    return ", ".join(step.name for step in spec.steps[first:last]) or "documents"


def _card_step(spec: BuildSpec, number: int, counts: StepCounts, clusters: int | None = None) -> CardStep:
    return {
        "name": spec.steps[number].name,
        "parameters": parameters(spec, number),
        "counts": counts,
        "clusters": clusters,
    }


def _compare(spec: BuildSpec, work: Path, stage: int, number: int, pieces: int) -> CardStep:
    """Find the duplicates of a stage and write down which documents are removed."""
    done = work / f"stage-{stage}" / "removed.json"
    found = read_json(done)
    if found is None:
        files = [stage_file(work, stage, piece, ".npy") for piece in range(pieces)]
        duplicates = find_duplicates(files, hasher(spec.steps[number])[0])
        with aside(done.with_name(REMOVED)) as path, path.open("wb") as file:
            np.save(file, duplicates.removed)
        parquet = [stage_file(work, stage, piece, ".parquet") for piece in range(pieces)]
        found = _card_step(spec, number, _counts(spec.steps[number].name, parquet, duplicates), duplicates.clusters)
        write_json(done, found)
    return cast(CardStep, found)


def _counts(name: str, files: Sequence[Path], duplicates: Duplicates) -> StepCounts:
    """What is removed, with the first documents as examples. Texts are read by row group."""
    reason = "like an earlier document" if name == "near_duplicates" else "the same as an earlier document"
    counts, total = no_step(), no_step()
    shown = dict(zip(duplicates.removed[:EXAMPLES].tolist(), duplicates.kept[:EXAMPLES].tolist(), strict=True))
    texts = _texts(files, {*shown, *shown.values()})
    for key, kept in shown.items():
        source, text = texts[key]
        removed(counts, reason, source, text, texts[kept][1])
    gone = duplicates.removed
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024, columns=["key", "text"]):
            sizes = np.array([len(text.encode()) for text in batch.column("text").to_pylist()], np.int64)
            out = np.isin(batch.column("key").to_numpy(), gone, assume_unique=True)
            total["documents"] += len(sizes)
            total["removed"] += int(out.sum())
            total["removed_bytes"] += int(sizes[out].sum())
            total["bytes"] += int(sizes[~out].sum())
    total["examples"] = counts["examples"]
    total["reasons"] = {reason: total["removed"]} if total["removed"] else {}
    return total


def _texts(files: Sequence[Path], keys: set[int]) -> dict[int, tuple[str, str]]:
    """Source and text of a few documents."""
    found: dict[int, tuple[str, str]] = {}
    for file in files if keys else ():
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            own = parquet.read_row_group(group, ["key"]).column("key").to_pylist()
            rows = [row for row, key in enumerate(own) if key in keys]
            if rows:
                table = parquet.read_row_group(group, ["key", "source", "text"]).take(rows)
                found |= {row["key"]: (row["source"], row["text"]) for row in table.to_pylist()}
    return found


def _forget(work: Path, stage: int) -> None:
    """Free the texts of a stage that nobody reads any more; its counts stay, so that it is not run again."""
    if stage >= 0:
        for path in (work / f"stage-{stage}").glob("[0-9]*.parquet"):
            path.unlink()


def _write_files(
    spec: BuildSpec, work: Path, stage: int, results: Sequence[PieceResult], runner: Runner, report: Report
) -> list[ShardResult]:
    (work / "out" / "data").mkdir(parents=True, exist_ok=True)
    parts = shards(
        [(result["num_documents"], result["num_bytes"]) for result in results], parse_bytes(spec.output.shard_bytes)
    )
    names = [f"train-{number:05d}-of-{len(parts):05d}.{spec.output.format}" for number in range(len(parts))]
    tasks = [
        ShardTask(
            spec.model_dump_json(),
            [(str(stage_file(work, stage, piece, ".parquet")), first, last) for piece, first, last in own],
            str(work / "out" / "data" / name),
        )
        for name, own in zip(names, parts, strict=True)
    ]
    return _reported(runner(write_shard, tasks), len(tasks), "files", report) if tasks else []


def shards(pieces: Sequence[tuple[int, int]], shard_bytes: int) -> list[list[tuple[int, int, int]]]:
    """Which documents each file of the output holds, in their order: piece, first row, and the row after the last.

    Args:
        pieces: documents and bytes of each.
        shard_bytes: text of a file; within a piece, documents count as equally long.
    """
    found: list[list[tuple[int, int, int]]] = [[]]
    room = float(shard_bytes)
    for number, (documents, num_bytes) in enumerate(pieces):
        each, row = num_bytes / max(1, documents), 0
        while row < documents:
            fitting = min(documents - row, max(1, round(room / max(1.0, each))))
            if room < each and found[-1]:
                found.append([])
                room = float(shard_bytes)
                continue
            found[-1].append((number, row, row + fitting))
            row, room = row + fitting, room - fitting * each
    return [own for own in found if own]


def _card(
    spec: BuildSpec,
    steps: list[CardStep],
    results: Sequence[PieceResult],
    files: list[ShardResult],
    identity: str,
) -> Card:
    sources: list[CardSource] = []
    for index, source in enumerate(spec.sources):
        found = opened(source.model_dump_json())
        own = [result["source"] for result in results if result["source_number"] == index]
        sources.append(
            {
                "name": source_name(source.as_recipe_source()),
                "fields": source.model_dump(mode="json", exclude_defaults=True),
                "fingerprint": dict(found.fingerprint),
                "license": source.license,
                "counts": added_sources(own),
            }
        )
    return {
        "card_version": CARD_VERSION,
        "name": spec.name,
        "description": spec.description,
        "build": identity,
        "versions": versions(),
        "sources": sources,
        "steps": steps,
        "documents": sum(result["num_documents"] for result in results),
        "bytes": sum(result["num_bytes"] for result in results),
        "format": spec.output.format,
        "files": files,
    }


def _publish(work: Path, folder: Path) -> None:
    """Rename the finished output into its place; what was there is removed afterwards."""
    out = work / "out"
    for path in (out / "data", out):
        sync(path)
    if folder.exists():
        os.replace(folder, work / _REPLACED)
    os.replace(out, folder)
    sync(folder.parent)
