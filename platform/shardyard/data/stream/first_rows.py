"""The check that local sources hold something to learn from, made before a run starts anything."""

from __future__ import annotations

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.sources.retry import Retry
from shardyard.data.stream.held_out import validation_sources
from shardyard.data.stream.left_out import LeftOut
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.stream.shuffle import Windows
from shardyard.data.tokenized.opening import open_documents
from shardyard.errors import DataError
from shardyard.recipe.isolation import packs_best_fit
from shardyard.recipe.schema import Source
from shardyard.recipe.sources.files import matching

# Rows that are looked at in search of one that can be learned from; beyond them the run finds out.
MOST_ROWS = 2000
ROWS_OF_AN_ESTIMATE = 64


class _EnoughError(Exception):
    """So many rows are left out that the search ends without a verdict."""


class _Counted(LeftOut):
    def _name(self, what: str) -> None:
        super()._name(what)
        self._stop_at_most()

    def filtered(self, reason: str) -> None:
        super().filtered(reason)
        self._stop_at_most()

    def _stop_at_most(self) -> None:
        if self.num_unusable + self.num_without_target + sum(self.num_filtered.values()) >= MOST_ROWS:
            raise _EnoughError


def check_first_rows(inputs: FormatInputs, objective: str) -> None:
    """Make the first row of each source of local files, for training and for evaluation.

    Raises:
        DataError: a source cannot be read, or none of its rows has anything to learn from.
    """
    data = inputs.data
    for training, sources in ((True, data.train), (False, validation_sources(data))):
        for source in sources:
            # Embedded and prepared sources have been seen before.
            if source.path is not None and is_local(source):
                _check(inputs, objective, source, training=training)


def filled_share(inputs: FormatInputs, objective: str) -> float | None:
    """The share of the positions of a row that hold tokens, from the first rows of each local source of training.

    None if no source is made of local files.

    Raises:
        DataError: a source cannot be read.
    """
    found = [
        (source.weight, _filled(inputs, objective, source))
        for source in inputs.data.train
        if source.path is not None and is_local(source)
    ]
    total = sum(weight for weight, _ in found)
    return sum(weight * share for weight, share in found) / total if total else None


def _filled(inputs: FormatInputs, objective: str, source: Source) -> float:
    opened = open_documents(inputs, objective, source, training=True)
    reader = ShareReader(share_of(opened, 0, 1), Retry())
    window = inputs.data.shuffle_window if packs_best_fit(inputs.data) else 1
    stream = make_rows(objective, inputs).stream(Windows(reader, (0, 0, 0), window, repeat=False))
    try:
        while stream.num_rows < ROWS_OF_AN_ESTIMATE and stream.next_row() is not None:
            pass
    finally:
        stream.close()
    return stream.num_tokens / max(1, stream.num_rows * inputs.sequence_length)


def is_local(source: Source) -> bool:
    """Whether the source is embedded, prepared, or made of existing local files and folders."""
    if source.path is None:
        return True
    return bool(matching(source.path))


def _check(inputs: FormatInputs, objective: str, source: Source, *, training: bool) -> None:
    opened = open_documents(inputs, objective, source, training=training)
    reader = ShareReader(share_of(opened, 0, 1), Retry())
    reader.left_out = _Counted(inputs.data.on_error)
    stream = make_rows(objective, inputs).stream(Windows(reader, (0, 0, 0), 1, repeat=False))
    try:
        found = stream.next_row()
    except _EnoughError:
        return
    finally:
        stream.close()
    if found is None:
        use = "training" if training else "the evaluation"
        raise DataError(
            f"source {reader.name} has nothing to learn from for {use}: {reader.left_out.in_words()}. Give rows room "
            "for their targets (data.sequence_length), or correct them."
        )
