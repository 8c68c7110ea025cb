"""What the removal of documents would touch: runs, checkpoints, models, held-out rows and copies of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from shardyard.data.datasets.store import data_root
from shardyard.data.index.unpacked import copy_of
from shardyard.data.ledger.places import Places
from shardyard.data.ledger.queries import FoundDocument, Query, find_documents
from shardyard.data.sources.sources import open_for
from shardyard.data.stream.held_out import validation_sources
from shardyard.data.tokenized.holding import sets_holding
from shardyard.engine.checkpoint.files import step_of
from shardyard.engine.inference.load import recipe_of
from shardyard.engine.inference.trace import TracedDocument, trace_documents
from shardyard.errors import ShardyardError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.catalog.datasets import DATASETS
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, typed


class TouchedRun(TypedDict):
    """A run that read some of the documents, or began from the weights of one that did.

    steps: those that saw one of them, in order; empty for a run that inherited them from `inherited`. delete: files and
    folders whose weights, or rows, come from them. clean_step: of the newest checkpoint before them, 0 for the start,
    None where only the held-out rows are touched. command: continues from there without them.
    """

    run: str
    folder: str
    documents: list[str]
    steps: list[int]
    inherited: str | None
    clean_step: int | None
    delete: list[str]
    command: str | None
    problem: str | None


class TouchedFile(TypedDict):
    """A file of a source, and the rows of it, from 1, to remove."""

    file: str
    rows: list[int]


class UnreadRun(TypedDict):
    """A run that cannot say what it read."""

    run: str
    problem: str


class Removal(TypedDict):
    """What a removal request would touch. copies: what else holds the data on this machine. unmatched: queries that no
    run knows a document for."""

    documents: list[TracedDocument]
    runs: list[TouchedRun]
    files: list[TouchedFile]
    copies: list[str]
    unread: list[UnreadRun]
    unmatched: list[str]


def plan_removal(runs: Sequence[RunFolder], queries: Sequence[Query], exclude: Path | None) -> Removal:
    """What the removal of the documents that queries name would touch.

    Args:
        exclude: the list that keeps them out of the continued runs, named in their commands.
    """
    documents: dict[str, TracedDocument] = {}
    touched: dict[str, TouchedRun] = {}
    unread, copies, matched = list[UnreadRun](), dict[str, None](), set[str]()
    for run in runs:
        try:
            recipe = recipe_of(run, trust=True)
            trace = trace_documents(run, queries)
            held_out = _held_out(recipe, queries)
        except ShardyardError as error:
            unread.append(UnreadRun(run=run.id, problem=" ".join(str(error).split())))
            continue
        for document in trace["documents"]:
            documents.setdefault(f"{document['file']}:{document['row']}:{document['sha256']}", document)
            matched.add(document["query"])
        matched.update(queries[index].text for index, found in held_out.items() if found)
        if trace["documents"]:
            copies |= dict.fromkeys(_copies(recipe, [document["file"] for document in trace["documents"]]))
        one = _touched(run, trace["documents"], held_out, exclude)
        if one is not None:
            touched[run.id] = one | {"problem": trace["problem"]}
    hashes = {document["sha256"] for document in documents.values()}
    copies |= {f"the tokenised set {folder} ({rows} rows)": None for folder, rows in sets_holding(sorted(hashes))}
    for heir in _heirs(runs, touched, exclude):
        touched[heir["run"]] = heir
    return Removal(
        documents=[{**document, "seen": []} for document in documents.values()],
        runs=list(touched.values()),
        files=_files(list(documents.values())),
        copies=list(copies),
        unread=unread,
        unmatched=[query.text for query in queries if query.text not in matched],
    )


def _held_out(recipe: Recipe, queries: Sequence[Query]) -> dict[int, list[FoundDocument]]:
    """The documents that evaluations may measure on."""
    spec = objective_spec(recipe.objective)
    places = [
        Places(index, open_for(spec, source, training=False), 1)
        for index, source in enumerate(validation_sources(recipe.data))
    ]
    found = find_documents(queries, places)
    return {index: [one for one in documents if not one.is_kept_out] for index, documents in found.items()}


def _touched(
    run: RunFolder,
    documents: Sequence[TracedDocument],
    held_out: dict[int, list[FoundDocument]],
    exclude: Path | None,
) -> TouchedRun | None:
    seen = [document for document in documents if document["seen"]]
    steps = sorted({one["step"] for document in seen for one in document["seen"]})
    measured = [one for found in held_out.values() for one in found]
    delete = [str(run.held_out)] if measured and run.held_out.exists() else []
    hashes = dict.fromkeys([document["sha256"] for document in seen] + [one.sha256 for one in measured])
    if not steps and not delete:
        return None
    clean = None
    if steps:
        clean, weights = _weights_from(run, steps[0])
        delete = [*weights, *delete]
    return TouchedRun(
        run=run.id,
        folder=str(run.path),
        documents=list(hashes),
        steps=steps,
        inherited=None,
        clean_step=clean,
        delete=delete,
        command=None if clean is None else _command(run, clean, exclude),
        problem=None,
    )


def _weights_from(run: RunFolder, first: int) -> tuple[int, list[str]]:
    """The step of the newest checkpoint before a step, 0 for the start, and all weights from that step on."""
    clean, delete = 0, list[str]()
    for path in sorted(run.checkpoints.glob("*step-*")):
        name = path.name.rpartition("step-")[2].partition("-")[0].partition(".")[0]
        if not name.isdecimal():
            continue
        if int(name) >= first:
            delete.append(str(path))
        elif path.name.startswith("step-"):
            clean = max(clean, step_of(path))
    delete += [str(path) for path in (run.final, run.adapter) if path.exists()]
    return clean, delete


def _command(run: RunFolder, clean: int, exclude: Path | None) -> str:
    listed = "FILE" if exclude is None else str(exclude)
    return f"shardyard resume {typed(run.path)} --step {clean} -s data.exclude={listed}"


def _heirs(runs: Sequence[RunFolder], touched: dict[str, TouchedRun], exclude: Path | None) -> Iterator[TouchedRun]:
    """Runs that began from weights that are to be deleted, and runs that began from theirs."""
    delete = {path: run["run"] for run in touched.values() for path in run["delete"]}
    left = [run for run in runs if run.id not in touched or touched[run.id]["clean_step"] != 0]
    found = True
    while found:
        found = False
        for run in list(left):
            origin = _origin(run, delete)
            if origin is None:
                continue
            left.remove(run)
            found = True
            _, weights = _weights_from(run, 0)
            own = touched.get(run.id)
            delete |= dict.fromkeys(weights, run.id)
            yield TouchedRun(
                run=run.id,
                folder=str(run.path),
                documents=own["documents"] if own else [],
                steps=own["steps"] if own else [],
                inherited=origin,
                clean_step=0,
                delete=list(dict.fromkeys([*weights, *(own["delete"] if own else [])])),
                command=f"{_command(run, 0, exclude)}  # once {origin} is trained again",
                problem=own["problem"] if own else None,
            )


def _origin(run: RunFolder, delete: dict[str, str]) -> str | None:
    """The run whose deleted weights a run began from."""
    try:
        starting = run.info().starting
    except ShardyardError:
        return None
    for weights in starting.values():
        path = Path(weights.get("path", "")).resolve()
        for deleted, name in delete.items():
            if name != run.id and path.is_relative_to(Path(deleted).resolve()):
                return name
    return None


def _is_hub_id(path: str) -> bool:
    """Whether a path is neither a file, a folder, a pattern nor an address."""
    return "://" not in path and "*" not in path and not Path(path).expanduser().exists()


def _files(documents: Sequence[TracedDocument]) -> list[TouchedFile]:
    rows: dict[str, set[int]] = {}
    for document in documents:
        rows.setdefault(document["file"], set()).add(document["row"])
    return [TouchedFile(file=file, rows=sorted(found)) for file, found in sorted(rows.items())]


def _copies(recipe: Recipe, files: Sequence[str]) -> Iterator[str]:
    """What else holds the data on this machine, in words."""
    for source in [*recipe.data.train, *recipe.data.validation]:
        if source.source in DATASETS:
            yield f"the prepared data set {data_root() / source.source}: prepare it again from packages without them"
        elif source.path is not None and _is_hub_id(source.path):
            yield f"the hub's cache of {source.path} (HF_HOME, else ~/.cache/huggingface)"
    for file in files:
        if Path(file).is_file() and (copy := copy_of(file)) is not None:
            yield f"the unpacked copy {copy} of {file}"
