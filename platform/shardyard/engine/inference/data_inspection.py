"""The data of a recipe as training will see it: what was recognised, its first rows, and their lengths and shares.

Legend: T = tokens of a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.mixture.batches import mixture_of
from shardyard.data.mixture.sizes import pass_of, with_sizes
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource
from shardyard.data.stream.cuts import NO_CUTS
from shardyard.data.stream.left_out import LeftOutCounts, added
from shardyard.data.stream.length_groups import rows_per_batch_of
from shardyard.data.stream.reader import with_shards
from shardyard.data.stream.rows import Row
from shardyard.data.stream.streams import Stream, StreamSettings
from shardyard.data.tokenized.opening import open_documents
from shardyard.engine.components import make_components
from shardyard.engine.inference.shown_media import pictures_of, sounds_of
from shardyard.objectives.registry import objective_spec
from shardyard.planning.stages import expected_tokens
from shardyard.recipe.batching import streams_of
from shardyard.recipe.mixture.stages import stage_tokens, stage_weights
from shardyard.recipe.mixture.weights import weights_of
from shardyard.recipe.schema import Image, Recipe, Source

IGNORED = -100
# Bounds of the histogram: powers of two.
_FIRST_POWER = 3
# The speed is measured for so long, or so many rows.
MEASURED_SECONDS, MEASURED_ROWS = 1.0, 2048
# Share of the labels that are the next tokens, above which all are shifted.
_SHIFTED = 0.99


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one document that are all trained or all only read."""

    text: str
    document: int
    trained: bool


@dataclass(frozen=True)
class ShownRow:
    """A row: its source, its tokens as text, and what else it holds, such as a label or the shape of an image.

    pictures, sounds: those of its examples, as data URLs, if they were asked for.
    """

    source: str
    spans: tuple[Span, ...]
    beside: str
    tokens: int
    pictures: tuple[str, ...] = ()
    sounds: tuple[str, ...] = ()


@dataclass(frozen=True)
class InspectedSource:
    """What was recognised of a source, and its part of the rows that were made.

    recognised: the layout, or the kind of its files. columns: role → column. others: columns that are not read.
    share: of the rows at the beginning. rows, tokens, documents: of those that were made; left_out counts others.
    pass_documents, pass_tokens: of one pass, for local files that are counted in a moment; tokens are estimated from
    the first documents. run_tokens, run_epochs: in the whole run, as planned.
    """

    name: str
    recognised: str
    columns: dict[str, str]
    others: tuple[str, ...]
    share: float
    rows: int
    tokens: int
    documents: int
    left_out: LeftOutCounts
    pass_documents: int | None = None
    pass_tokens: float | None = None
    run_tokens: float | None = None
    run_epochs: float | None = None


@dataclass(frozen=True)
class Speed:
    """How fast one thread of this machine makes rows, once it has begun, and the time until the first one."""

    first_seconds: float
    rows_per_second: float
    tokens_per_second: float


@dataclass(frozen=True)
class Inspection:
    """The first rows of a recipe's training data.

    lengths: upper bound in tokens → number of documents, or of rows where a row is one example. filled: share of the
    positions of rows that hold tokens; None without tokens. trained: share of the tokens that are targets.
    cut_documents, cut_tokens: as the metrics data/cut_documents and data/cut_tokens, of all rows that were made.
    """

    sources: tuple[InspectedSource, ...]
    rows: tuple[ShownRow, ...]
    lengths: dict[int, int]
    filled: float | None
    trained: float | None
    speed: Speed
    cut_documents: int
    cut_tokens: int


def inspect_data(recipe: Recipe, num_rows: int, shown: int, *, media: bool = False) -> Inspection:
    """Make the first rows of the global order, and show the first `shown` of them, with pictures and sound if `media`.

    Raises:
        ShardyardError: the data or the tokenizer cannot be read.
    """
    recipe = with_sizes(recipe)
    components, data = make_components(recipe), recipe.data
    number = streams_of(recipe, 1)
    sources = [
        with_shards(open_documents(components.format_inputs, recipe.objective, source, training=True), number)
        for source in data.train
    ]
    format_ = make_rows(recipe.objective, components.format_inputs)
    settings = StreamSettings(
        format_.stream,
        data.shuffle_window,
        number,
        recipe.train.seed,
        on_error=data.on_error,
        error_limit=data.error_limit,
        order=data.order,
        group=rows_per_batch_of(data, recipe.train.global_batch, number),
        mixture=mixture_of(data, recipe.objective),
    )
    weights = weights_of(data)
    streams = [Stream(index, sources, weights, settings, Retry()) for index in range(min(number, num_rows))]
    first_seconds = 0.0
    made, examples, started = list[tuple[Row, int]](), list[list[Any]](), time.perf_counter()
    try:
        for place in range(num_rows):
            stream = streams[place % len(streams)]
            if (row := stream.next_row()) is None:
                continue
            made.append(row)
            first_seconds = time.perf_counter() - started if len(made) == 1 else first_seconds
            if media and len(examples) < shown:
                parts = stream.by_source[row[1]].parts()
                examples.append([part.window.drawn(part.document, part.document + 1)[0][1] for part in parts])
        told = [_source(index, sources, weights, streams, made) for index in range(len(sources))]
        cuts = sum((stream.cuts for stream in streams), NO_CUTS)
        speed = _speed(streams)
    finally:
        for stream in streams:
            stream.close()
    examples += [[] for _ in made[len(examples) : shown]]
    names, tokenizer = [source.name for source in sources], components.tokenizer
    return Inspection(
        tuple(_in_the_run(recipe, components.format_inputs, sources, told)),
        tuple(
            _shown(row, names[source], tokenizer, seen, recipe.image)
            for (row, source), seen in zip(made[:shown], examples, strict=True)
        ),
        _histogram([length for row, _ in made for length in _lengths(row)]),
        *_shares([row for row, _ in made], data.sequence_length),
        Speed(first_seconds, *speed),
        cuts.documents,
        cuts.tokens,
    )


def _speed(streams: Sequence[Stream]) -> tuple[float, float]:
    """Rows and tokens a second of streams that have begun, measured for about a second."""
    started, rows, tokens = time.perf_counter(), 0, 0
    while (seconds := time.perf_counter() - started) < MEASURED_SECONDS and rows < MEASURED_ROWS:
        made = streams[rows % len(streams)].next_row()
        if made is None:
            break
        rows, tokens = rows + 1, tokens + _num_tokens(made[0])
    return rows / seconds, tokens / seconds


def _source(
    index: int,
    sources: Sequence[OpenSource],
    weights: Sequence[float],
    streams: Sequence[Stream],
    made: Sequence[tuple[Row, int]],
) -> InspectedSource:
    source = sources[index]
    own = [row for row, number in made if number == index]
    about = [source.found.about] if source.found is not None and source.found.about else []
    about += [source.layout.layout.name] if source.layout is not None else []
    read = {column.split(".")[0] for column in source.columns.values()} | set(source.columns.values())
    features = source.found.features if source.found is not None else ()
    return InspectedSource(
        source.name,
        ", ".join(about) or "rows",
        dict(source.columns),
        tuple(column for column in features if column not in read),
        weights[index] / sum(weights),
        len(own),
        sum(_num_tokens(row) for row in own),
        sum(len(_starts(row)) for row in own),
        added([stream.by_source[index].windows.reader.left_out.counts() for stream in streams]),
    )


def _in_the_run(
    recipe: Recipe, inputs: FormatInputs, opened: Sequence[OpenSource], found: Sequence[InspectedSource]
) -> Iterator[InspectedSource]:
    """The sources with the size of a pass, and with what the run takes of them."""
    sizes = [
        pass_of(source, one, inputs, recipe.objective) for source, one in zip(recipe.data.train, opened, strict=True)
    ]
    row_tokens = (recipe.data.sequence_length or 0) * objective_spec(recipe.objective).sequences
    passes = [None if size is None else size.rows * row_tokens for size in sizes]
    stages = stage_tokens(recipe)
    totals: list[float | None] = [None] * len(sizes)
    if stages is not None:
        budgets = [_budget(source, one) for source, one in zip(recipe.data.train, passes, strict=True)]
        totals = list(expected_tokens(stages, stage_weights(recipe), budgets))
    for source, size, tokens, total in zip(found, sizes, passes, totals, strict=True):
        yield replace(
            source,
            pass_documents=None if size is None else size.documents,
            pass_tokens=tokens or None,
            run_tokens=total,
            run_epochs=total / tokens if tokens and total is not None else None,
        )


def _budget(source: Source, pass_tokens: float | None) -> float | None:
    """The most tokens from a source, as far as its size is known."""
    passes = None if source.epochs is None or not pass_tokens else source.epochs * pass_tokens
    return min((limit for limit in (source.tokens, passes) if limit is not None), default=None)


def _starts(row: Row) -> list[int]:
    """Where the documents of a row begin."""
    positions = row.get("position_ids")
    if positions is None or positions.ndim != 1 or "input_ids" not in row:
        return [0]
    return sorted({0, *np.flatnonzero(positions == 0).tolist()})


def _num_tokens(row: Row) -> int:
    """Tokens of a row without its padding; those of the target of an encoder–decoder count too."""
    ids = row.get("input_ids")
    if ids is None or ids.ndim != 1:
        return int((row["labels"] >= 0).sum()) if "decoder_input_ids" in row else 0
    mask = row.get("attention_mask")
    length = int(mask.sum()) if mask is not None and mask.shape == ids.shape else len(ids)
    return length + (int((row["labels"] >= 0).sum()) if "decoder_input_ids" in row else 0)


def _lengths(row: Row) -> list[int]:
    starts = _starts(row)
    if len(starts) == 1:
        return [_num_tokens(row)]
    return np.diff([*starts, len(row["input_ids"])]).tolist()  # type: ignore[no-any-return]


def _histogram(lengths: Sequence[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for length in lengths:
        bound = 1 << max(_FIRST_POWER, (max(1, length) - 1).bit_length())
        found[bound] = found.get(bound, 0) + 1
    return dict(sorted(found.items()))


def _shares(rows: Sequence[Row], length: int | None) -> tuple[float | None, float | None]:
    """Share of the positions that are filled, and of the tokens that are targets."""
    with_tokens = [row for row in rows if "input_ids" in row and row["input_ids"].ndim == 1]
    if not with_tokens or length is None:
        return None, None
    tokens = sum(_num_tokens(row) for row in with_tokens)
    targets = [row["labels"] for row in with_tokens if "labels" in row and row["labels"].ndim == 1]
    trained = sum(int((labels != IGNORED).sum()) for labels in targets) / tokens if targets and tokens else None
    return min(1.0, tokens / (len(with_tokens) * length)), trained


def _shown(row: Row, source: str, tokenizer: Any, examples: Sequence[Any], image: Image) -> ShownRow:
    spans = tuple(_spans(row, tokenizer)) if tokenizer is not None else ()
    pictures = tuple(picture for example in examples for picture in pictures_of(example, image))
    sounds = tuple(sound for example in examples for sound in sounds_of(example))
    return ShownRow(source, spans, _beside(row), _num_tokens(row), pictures, sounds)


def _spans(row: Row, tokenizer: Any) -> Iterator[Span]:
    labels = row.get("labels")
    if "decoder_input_ids" in row and labels is not None:
        if "input_ids" in row:
            yield Span(str(tokenizer.decode(row["input_ids"])), 0, trained=False)
        yield Span(str(tokenizer.decode(labels[labels >= 0])), 0, trained=True)
        return
    for name in [name for name in row if name == "input_ids" or name.endswith("_input_ids")]:
        if row[name].ndim == 1:
            ids, trained = _targets(row, name)
            yield from _runs(ids, trained, _starts(row), tokenizer)


def _targets(row: Row, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Tokens, and which of them are targets; the labels of decoders are shifted by one, and the last is no input."""
    ids, labels = row[name], row.get("labels")
    if labels is None or name != "input_ids" or labels.shape != ids.shape:
        return ids, np.zeros(len(ids), dtype=np.bool_)
    targets = labels != IGNORED
    inner = targets[:-1]
    if not inner.any() or (labels[:-1] == ids[1:])[inner].mean() < _SHIFTED:
        return ids, np.asarray(targets, dtype=np.bool_)
    trained = np.concatenate([[False], targets])
    return (np.append(ids, labels[-1]), trained) if targets[-1] else (ids, trained[:-1])


def _runs(ids: Any, trained: Any, starts: Sequence[int], tokenizer: Any) -> Iterator[Span]:
    document = np.searchsorted(starts, np.arange(len(ids)), side="right") - 1
    changes = np.flatnonzero((np.diff(document) != 0) | (np.diff(trained) != 0)) + 1
    for first, last in zip([0, *changes.tolist()], [*changes.tolist(), len(ids)], strict=True):
        yield Span(str(tokenizer.decode(ids[first:last])), int(document[first]), bool(trained[first]))


def _beside(row: Row) -> str:
    others = []
    for name, values in row.items():
        if values.size == 1:
            others.append(f"{name} {values.reshape(-1)[0]}")
        elif values.ndim > 1 or values.dtype.kind == "f":
            others.append(f"{name} {'×'.join(map(str, values.shape))}")
    return ", ".join(others)


def as_json(found: Inspection) -> dict[str, object]:
    """The inspection as plain data."""
    return asdict(found)
