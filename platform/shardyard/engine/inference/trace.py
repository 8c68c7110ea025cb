"""The steps of a run that a document was trained in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TypedDict

from shardyard.data.ledger.places import Number
from shardyard.data.ledger.queries import FoundDocument, Query, find_documents
from shardyard.data.ledger.replay import Finder, Replay, Seen
from shardyard.engine.inference.load import recipe_of
from shardyard.engine.inference.run_ledger import RunLedger, Segment, read_run
from shardyard.engine.inference.step_documents import changed_since
from shardyard.tracking.run.folder import RunFolder


class Occurrence(TypedDict):
    """A row that holds a document, or a part of it. `row` counts from 0 in the global batch, epochs from 0."""

    step: int
    row: int
    epoch: int
    tokens: int | None


class TracedDocument(TypedDict):
    """A document that a query names, and the rows of the run that it was in.

    kept_out: it is not trained on: held out, excluded, or removed by data.filters. text: its beginning.
    """

    query: str
    source: str
    file: str
    row: int
    sha256: str
    text: str
    kept_out: bool
    seen: list[Occurrence]


class DocumentTrace(TypedDict):
    """`trained`: the last step of the run. `unmatched`: queries that name no document of its sources. `problem`: how
    the data has changed since training, or None."""

    run: str
    trained: int
    documents: list[TracedDocument]
    unmatched: list[str]
    problem: str | None


def trace_documents(folder: RunFolder, queries: Sequence[Query]) -> DocumentTrace:
    """The documents that queries name, and the steps of a run that saw them.

    Raises:
        ShardyardError: recipe, tokenizer or data no longer exist or cannot be read.
    """
    ledger, info = read_run(folder, recipe_of(folder, trust=True)), folder.info()
    traced: dict[tuple[int, int, int, str], TracedDocument] = {}
    matched, problem = set[int](), None
    for segments in _alike(ledger):
        components, replay = segments[0].make()
        problem = changed_since(info.data, replay, components.tokenizer) or problem
        found = find_documents(queries, replay.places)
        for index, documents in found.items():
            matched.update([index] if documents else [])
            for document in documents:
                traced.setdefault(_key(document), _traced(queries[index].text, document))
        distinct = {_key(document): document for documents in found.values() for document in documents}
        for segment in segments:
            for key, seen in _seen(segment, ledger, replay, distinct):
                step, row = segment.step_of(seen.row)
                traced[key]["seen"].append(Occurrence(step=step, row=row, epoch=seen.epoch, tokens=seen.tokens))
    for one in traced.values():
        one["seen"].sort(key=lambda row: (row["step"], row["row"]))
    return DocumentTrace(
        run=folder.id,
        trained=ledger.trained,
        documents=list(traced.values()),
        unmatched=[query.text for index, query in enumerate(queries) if index not in matched],
        problem=problem,
    )


def _alike(ledger: RunLedger) -> list[list[Segment]]:
    """Segments that were made in the same way, so that their sources are opened once."""
    found: dict[str, list[Segment]] = {}
    for segment in ledger.segments:
        made_by = [
            segment.recipe.data.model_dump(mode="json"),
            segment.recipe.train.seed,
            segment.batch,
            segment.streams,
        ]
        found.setdefault(json.dumps(made_by, sort_keys=True), []).append(segment)
    return list(found.values())


_Key = tuple[int, int, int, str]


def _key(document: FoundDocument) -> _Key:
    return document.place.source, document.place.shard, document.number, document.sha256


def _traced(query: str, document: FoundDocument) -> TracedDocument:
    return TracedDocument(
        query=query,
        source=document.source,
        file=document.place.file,
        row=document.place.row,
        sha256=document.sha256,
        text=document.words,
        kept_out=document.is_kept_out,
        seen=[],
    )


def _seen(
    segment: Segment, ledger: RunLedger, replay: Replay, documents: dict[_Key, FoundDocument]
) -> Iterator[tuple[_Key, Seen]]:
    end = ledger.trained if segment.end is None else segment.end
    if end <= segment.start:
        return
    known = {stream: segment.known(stream) for stream in range(segment.streams)}
    finder = Finder(replay, known, segment.rows_until(end))
    names: dict[Number, _Key] = {}
    for key, document in documents.items():
        if document.is_kept_out:
            continue
        source = document.place.source
        whole = [stream for stream in range(segment.streams) if finder.reads_whole(stream, source)]
        for number in replay.places[source].numbers(document.place.shard, document.number, whole):
            names[number] = key
    for number, rows in finder.find(set(names)).items():
        for seen in rows:
            if seen.row >= segment.first_row:
                yield names[number], seen
