"""The documents behind a step: the rows of its global batch, reproduced from the recipe and the run folder.

The order of data is a function of recipe, tokenizer, seed and step, so training does not record it. Rows are produced
starting from the newest checkpoint before the step, which holds the state of every stream.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from shardyard.data.formats import make_rows
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource, open_for
from shardyard.data.stream.document_rows import DocumentStream
from shardyard.data.stream.fitted_documents import FittedStream
from shardyard.data.stream.length_groups import rows_per_batch_of
from shardyard.data.stream.packing import IGNORED, TokenStream
from shardyard.data.stream.reader import with_shards
from shardyard.data.stream.rows import Position, Row
from shardyard.data.stream.shuffle import Window, Windows
from shardyard.data.stream.streams import Stream, StreamSettings, StreamStates
from shardyard.data.tokenizers import tokenizer as tokenizers
from shardyard.engine.checkpoint.files import committed_checkpoints
from shardyard.engine.components import Components, make_components
from shardyard.engine.inference.load import recipe_of
from shardyard.engine.inference.step_sources import check_sources
from shardyard.errors import RunFolderError, UsageError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.batching import streams_of
from shardyard.recipe.code import refuse_code
from shardyard.recipe.mesh import data_size
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, typed

MOST_CHARACTERS = 2000
_KEPT_WINDOWS = 8


class DocumentPart(TypedDict):
    """One document, or the part of it in a row.

    `row` counts from 0 in the global batch, `rank` is the data-parallel rank that trained on it. `document` is the
    position in its stream; epochs, windows and documents count from 0. `tokens` is None for rows without tokens.
    """

    source: str
    document: str
    rank: int
    row: int
    text: str
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
    stored = info.data
    streams = int(stored.get("streams") or stored.get("lanes") or streams_of(recipe, info.world_size or 1))
    maker = _Maker(recipe, make_components(recipe), streams)
    batch, readers = recipe.train.global_batch, data_size(recipe, info.world_size or 1)
    first = (step - 1) * batch
    shown = range(first, first + min(batch, most_rows))
    start = _nearest_state(folder, step - 1)
    parts = [
        part
        for number, row in maker.rows(shown, start)
        for part in maker.parts(row, row_number=number - first, rank=number % readers)
    ]
    return {
        "step": step,
        "rows": batch,
        "documents": parts,
        "problem": maker.changed_since(stored),
    }


@dataclass(frozen=True)
class _RowOrigin:
    """A row, the position of its stream before it, and the windows that its documents come from."""

    row: Row
    source: int
    before: Position
    stream: Any
    windows: _Seen


class _Seen:
    """Windows of a stream; keeps the most recent ones."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self.recent: OrderedDict[tuple[int, int], Window] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._windows, name)

    def next(self) -> Window | None:
        window = self._windows.next()
        if window is not None:
            self.recent[window.epoch, window.index] = window
            while len(self.recent) > _KEPT_WINDOWS:
                self.recent.popitem(last=False)
        return window


class _Maker:
    """Reproduces rows of a run."""

    def __init__(self, recipe: Recipe, components: Components, streams: int) -> None:
        data, spec = recipe.data, objective_spec(recipe.objective)
        self._streams = streams
        self._tokenizer = components.tokenizer
        self._sources: list[OpenSource] = [
            with_shards(
                open_for(spec, source, training=True),
                streams,
            )
            for source in data.train
        ]
        self._weights = [source.weight for source in data.train]
        format_ = make_rows(recipe.objective, components.format_inputs)
        self._settings = StreamSettings(
            lambda windows: format_.stream(cast(Windows, _Seen(windows))),
            data.shuffle_window,
            streams,
            recipe.train.seed,
            on_error=data.on_error,
            order=data.order,
            group=rows_per_batch_of(data, recipe.train.global_batch, streams),
        )

    def rows(self, numbers: range, start: StreamStates | None) -> Iterator[tuple[int, _RowOrigin]]:
        """The rows with these numbers, in the order of the run; streams that they do not need are not opened."""
        retry, streams = Retry(), dict[int, Stream]()
        try:
            for number in numbers:
                index = number % self._streams
                if index not in streams:
                    streams[index] = Stream(index, self._sources, self._weights, self._settings, retry)
                    if start is not None:
                        streams[index].load_state(start[str(index)])
                yield number, _row(streams[index], number // self._streams)
        finally:
            for stream in streams.values():
                stream.close()

    def parts(self, made: _RowOrigin, *, row_number: int, rank: int) -> Iterator[DocumentPart]:
        """The documents of a row, in order."""
        source, row = self._sources[made.source].name, made.row
        if isinstance(made.stream, FittedStream):
            yield from self._whole(made.stream, source, row, rank, row_number)
            return
        if not isinstance(made.stream, TokenStream):
            tokens = len(row["input_ids"]) if "input_ids" in row else None
            yield _document_part(source, made.before, rank, row_number, self._described(row), tokens)
            return
        if isinstance(made.stream, DocumentStream):
            filled = int(np.count_nonzero(row["labels"] != IGNORED))
            yield _document_part(source, made.before, rank, row_number, self._text(row["input_ids"][:filled]), filled)
            return
        ids = np.append(row["input_ids"], row["labels"][-1:])  # the last token is only a target
        separator = made.stream._encoder.separator
        starts = [0, *(np.flatnonzero(ids[1:-1] == separator) + 1).tolist(), len(ids) - 1]
        at = _from(made.before, made.windows.recent)
        for begin, end in pairwise(starts):
            yield _document_part(source, at, rank, row_number, self._text(ids[begin:end]), end - begin)
            at = _after(at, made.windows.recent)

    def _whole(self, stream: FittedStream, source: str, row: Row, rank: int, number: int) -> Iterator[DocumentPart]:
        begin = 0
        for part in stream.parts():
            end = begin + (part.tokens or 0)
            at = Position(part.window.epoch, part.window.index, part.window.cursor, part.document)
            yield _document_part(source, at, rank, number, self._text(row["input_ids"][begin:end]), end - begin)
            begin = end

    def changed_since(self, stored: Mapping[str, Any]) -> str | None:
        """How the data differs from that of the training; None if nothing differs or this is unknown."""
        if not stored:
            return None
        now = [source.fingerprint for source in self._sources]
        before = stored.get("sources") or now
        changed = [
            source.name
            for source, one, other in zip(self._sources, json.loads(json.dumps(now)), before, strict=False)
            if one != other
        ]
        tokenizer = stored.get("tokenizer")
        if tokenizer and self._tokenizer is not None and tokenizers.fingerprint(self._tokenizer) != tokenizer:
            changed.append("the tokenizer")
        if not changed:
            return None
        return f"{', '.join(changed)} is not what it was when the run was trained: it may have seen other rows."

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


def _row(stream: Stream, position: int) -> _RowOrigin:
    """Row `position` of a stream; earlier rows are produced and discarded."""
    while True:
        number, before = stream.num_rows, [rows.position for rows in stream.by_source]
        made = stream.next_row()
        assert made is not None, "a training stream never ends"
        if number == position:
            row, source = made
            rows = stream.by_source[source]
            return _RowOrigin(row, source, before[source], rows, cast(_Seen, rows.windows))


def _after(at: Position, windows: Mapping[tuple[int, int], Window]) -> Position:
    """The position of the next document."""
    window = windows.get((at.epoch, at.window))
    following = at.document + 1 if window is None else window.following(at.document)
    if following is not None:
        return Position(at.epoch, at.window, at.cursor, following)
    epoch, index = (at.epoch, at.window + 1) if (at.epoch, at.window + 1) in windows else (at.epoch + 1, 0)
    return _from(Position(epoch, index), windows)


def _from(at: Position, windows: Mapping[tuple[int, int], Window]) -> Position:
    """The position, or that of the first usable document after it in its window."""
    window = windows.get((at.epoch, at.window))
    first = None if window is None else window.following(at.document - 1)
    return at if first is None else replace(at, document=first, offset=at.offset if first == at.document else 0)


def _document_part(source: str, at: Position, rank: int, row: int, text: str, tokens: int | None) -> DocumentPart:
    document = f"epoch {at.epoch}, window {at.window}, document {at.document}"
    return DocumentPart(source=source, document=document, rank=rank, row=row, text=text, tokens=tokens)


def _nearest_state(folder: RunFolder, step: int) -> StreamStates | None:
    """The states of all streams from the newest checkpoint up to `step`; None if there is none."""
    found: list[tuple[int, Path]] = [
        (int(path.name.removeprefix("step-")), path) for path in committed_checkpoints(folder.checkpoints)
    ]
    for _, path in sorted((item for item in found if item[0] <= step), reverse=True):
        try:
            state: StreamStates = json.loads((path / "data.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path / 'data.json'} cannot be read: {error}") from error
        return state
    return None
