"""The documents behind a step: the rows of its global batch, made again from the recipe and the run folder.

The order of data is a function of recipe, tokenizer, seed and step, so training records no rows, only the states of its
streams at some steps (`data/ledger/`). Rows are made from the newest state before the step on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from shardyard.data.ledger.documents import content_hash, words_of
from shardyard.data.ledger.replay import MadeRow, Replay
from shardyard.data.sources.sources import Example
from shardyard.data.stream.rows import Part, Row
from shardyard.data.tokenizers import tokenizer as tokenizers
from shardyard.engine.inference.load import recipe_of
from shardyard.engine.inference.run_ledger import Segment, read_run
from shardyard.engine.inference.step_sources import check_sources
from shardyard.errors import UsageError
from shardyard.recipe.code import refuse_code
from shardyard.tracking.run.folder import RunFolder, typed
from shardyard.tracking.run.info import DataInfo

MOST_CHARACTERS = 2000


class DocumentPart(TypedDict):
    """One document, or the part of it in a row.

    `row` counts from 0 in the global batch, `rank` is the data-parallel rank that trained on it. `document` is the
    position in its stream; epochs, windows and documents count from 0. `file` and `file_row` (from 1) are its place,
    `sha256` is the hash of its content. `first` is its first token in the row, counted from the separator before it;
    `tokens` are those in the row, None for rows without tokens.
    """

    source: str
    document: str
    file: str
    file_row: int
    sha256: str
    epoch: int
    rank: int
    row: int
    text: str
    first: int
    tokens: int | None


class StepDocuments(TypedDict):
    """`rows`: number of rows in the global batch. `problem`: how the data has changed since training, or None."""

    step: int
    rows: int
    documents: list[DocumentPart]
    problem: str | None


def documents_of_step(
    folder: RunFolder, step: int, most_rows: int = 64, *, only_from: Sequence[Path] | None = None
) -> StepDocuments:
    """`step`, the number of `rows` in its global batch, `documents` of the first `most_rows` rows, `problem` or None.

    A `problem` states that the data has changed since the run was trained. If `only_from` is given, data is read only
    from these folders and Shardyard's own; None if the user trusts the run.

    Raises:
        UsageError: the run has no such step, or refers to data elsewhere.
        ShardyardError: recipe, tokenizer or data no longer exist or cannot be read.
    """
    recipe, info = recipe_of(folder, trust=True), folder.info()
    last = info.total_steps or recipe.train.steps
    if step < 1 or (last is not None and step > last):
        raise UsageError(f"{folder.id} has no step {step}; its steps are 1 to {last}.")
    if only_from is not None:
        command = f"shardyard data rows {typed(folder.path)} --step {step}"
        refuse_code(recipe, folder.id, f"Where you know who wrote it, in a terminal: {command}")
        check_sources(recipe, only_from, command)
    segment = read_run(folder, recipe).segment(step)
    if only_from is not None:
        check_sources(segment.recipe, only_from, command)
    components, replay = segment.make()
    maker = _Maker(replay, components.tokenizer)
    rows = segment.rows_of(step)
    made = sorted(_rows(segment, replay, rows[:most_rows]), key=lambda one: one[0])
    return {
        "step": step,
        "rows": len(rows),
        "documents": [
            part
            for number, row in made
            for part in maker.parts(row, row_number=number - rows[0], rank=number % segment.readers)
        ],
        "problem": changed_since(info.data, replay, components.tokenizer),
    }


def _rows(segment: Segment, replay: Replay, numbers: range) -> Iterator[tuple[int, MadeRow]]:
    """The rows with these numbers in the run; streams that they do not need are not opened."""
    streams: dict[int, list[int]] = {}
    for number in numbers:
        streams.setdefault(number % segment.streams, []).append(number // segment.streams)
    for stream, positions in streams.items():
        before = [one for one in segment.known(stream) if one.rows <= positions[0]]
        state = before[-1].state if before else None
        for made in replay.rows(stream, state, positions[0], positions[-1] + 1):
            yield made.position * segment.streams + stream, made


def changed_since(stored: DataInfo, replay: Replay, tokenizer: Any) -> str | None:
    """How the data differs from that of the training; None if nothing differs or this is unknown."""
    if not stored:
        return None
    now = [source.fingerprint for source in replay.sources]
    before = stored.get("sources") or now
    changed = [
        source.name
        for source, one, other in zip(replay.sources, json.loads(json.dumps(now)), before, strict=False)
        if one != other
    ]
    known = stored.get("tokenizer")
    if known and tokenizer is not None and tokenizers.fingerprint(tokenizer) != known:
        changed.append("the tokenizer")
    if not changed:
        return None
    return f"{', '.join(changed)} is not what it was when the run was trained: it may have seen other rows."


class _Maker:
    """Describes the documents of rows."""

    def __init__(self, replay: Replay, tokenizer: Any) -> None:
        self._replay, self._tokenizer = replay, tokenizer

    def parts(self, made: MadeRow, *, row_number: int, rank: int) -> Iterator[DocumentPart]:
        """The documents of a row, in order."""
        row, at = made.row, 0
        for index, part in enumerate(made.parts):
            if part.tokens is not None:
                text = self._text(row["input_ids"][at : at + part.tokens])
                at += part.tokens
            else:
                text = words_of(_example(part)) if index else self._described(row)
            window = part.window
            place = self._replay.places[made.source].of(made.number(part))
            yield DocumentPart(
                source=self._replay.sources[made.source].name,
                document=f"epoch {window.epoch}, window {window.index}, document {part.document}",
                file=place.file,
                file_row=place.row,
                sha256=content_hash(self._stored(made, part)),
                epoch=window.epoch,
                rank=rank,
                row=row_number,
                text=text,
                first=part.first,
                tokens=len(row["input_ids"]) if part.tokens is None and "input_ids" in row else part.tokens,
            )

    def _stored(self, made: MadeRow, part: Part) -> Example:
        """The document before data.filters, which may have changed it."""
        if self._replay.sources[made.source].steps is not None:
            read = self._replay.places[made.source].read(*self._replay.places[made.source].shard_of(made.number(part)))
            if read is not None:
                return read.example
        return _example(part)

    def _described(self, row: Row) -> str:
        """The tokens of a row as text, followed by a description of its other contents."""
        texts: list[str] = []
        others: list[str] = []
        readable = self._tokenizer is not None
        for name, values in row.items():
            if readable and name == "input_ids":
                texts.insert(0, self._text(values))
            elif readable and name.endswith("_input_ids") and not name.startswith("decoder"):
                texts.append(f"{name.removesuffix('_input_ids')}: {self._text(values)}")
            elif name == "labels" and values.ndim == 0:
                others.append(f"label {values}")
            elif name == "labels" and readable and ("decoder_input_ids" in row or "input_ids" not in row):
                texts.append(f"→ {self._text(values[values >= 0])}")
            elif values.ndim == 0 or values.size == 1:
                others.append(f"{name} {values.reshape(-1)[0]}")
            elif values.ndim > 1:
                others.append(f"{name} {'×'.join(map(str, values.shape))}")
        return " ".join([*texts, *others])[:MOST_CHARACTERS]

    def _text(self, ids: Any) -> str:
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=True))[:MOST_CHARACTERS]


def _example(part: Part) -> Example:
    return part.window.drawn(part.document, part.document + 1)[0][1]
