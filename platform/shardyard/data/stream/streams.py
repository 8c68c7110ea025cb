"""Canonical streams: their fixed number makes the order of rows independent of the number of ranks.

Row g of a run comes from stream g mod L. Each stream has its own share of each source, mixture draws, windows and
packing carry, so its rows depend only on recipe, tokenizer and seed, whichever rank reads it.

Legend: L = streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from shardyard.data.mixture.draws import EvenMixture, MixturePlan, MixtureState
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource
from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.stream.rows import Position, PositionState, Row, RowStream
from shardyard.data.stream.shuffle import MIXTURE_STREAM, Windows, keyed_words
from shardyard.errors import DataError
from shardyard.recipe.schema import OnError, Order

DRAWS_PER_BLOCK = 256


class Mixture:
    """Draws the source of row n of a stream by weight; the draw depends only on (seed, stream, n).

    Every row comes from one source, so weights are shares of rows and thus of tokens, whatever the document lengths.
    """

    def __init__(self, weights: Sequence[float], seed: int, stream: int) -> None:
        self._weights = np.array(weights, dtype=np.float64)
        self._key = (seed, stream)
        self._block = -1
        self._uniform: npt.NDArray[np.floating[Any]] = np.empty(0)

    def draw(self, row: int) -> int | None:
        """Index of the source of row `row`; None if all have ended."""
        if not self._weights.any():
            return None
        if len(self._weights) == 1:
            return 0
        block, index = divmod(row, DRAWS_PER_BLOCK)
        if block != self._block:
            words = keyed_words(DRAWS_PER_BLOCK, MIXTURE_STREAM, *self._key, block)
            self._block, self._uniform = block, (words >> np.uint64(11)) * 2.0**-53  # [0, 1) in doubles
        bounds = np.cumsum(self._weights)
        return int(np.searchsorted(bounds[:-1], self._uniform[index] * bounds[-1], side="right"))

    def drawn(self, source: int, row: int) -> None:
        """Called with each row that was made; there is nothing to count."""

    def drop(self, source: int) -> None:
        """Remove a source that has ended; the others get its share."""
        self._weights[source] = 0.0


@dataclass(frozen=True)
class StreamSettings:
    """Settings of all streams of a loader; `shuffle_window` in examples, `rows` turns windows into rows.

    `on_error` says what happens to unusable rows, `error_limit` how many there may be, `order` is data.order.
    `group`: rows of a stream in each global batch, if these are of like length, else 0.
    `mixture` draws the sources evenly and by budget instead of independently by weight. `stage_rows` is `rows` of each
    of its stages, where they differ.
    """

    rows: Callable[[Windows], RowStream]
    shuffle_window: int
    streams: int
    seed: int
    repeat: bool = True
    on_error: OnError = "skip"
    error_limit: float = 1.0
    order: Order = 1
    group: int = 0
    mixture: MixturePlan | None = None
    stage_rows: tuple[Callable[[Windows], RowStream], ...] = ()


class StreamState(TypedDict):
    """A stream in the data state of a checkpoint: the number of rows so far, and the position in each source."""

    rows: int
    sources: list[PositionState]
    mixture: NotRequired[MixtureState]


# Number of a stream (a string, as in JSON) → its state: data.json of a checkpoint.
StreamStates = Mapping[str, StreamState]


class Stream:
    """One stream: endless rows, or with `repeat=False` each document once."""

    def __init__(
        self,
        index: int,
        sources: Sequence[OpenSource],
        weights: Sequence[float],
        settings: StreamSettings,
        retry: Retry,
    ) -> None:
        self.index = index
        self.num_rows = 0
        self._settings = settings
        self._mixture: Mixture | EvenMixture = Mixture(weights, settings.seed, index)
        if settings.mixture is not None:
            self._mixture = EvenMixture(settings.mixture, settings.seed, index, settings.streams)
        self._stage = 0
        self.by_source = [
            self._rows()(
                Windows(
                    ShareReader(
                        share_of(source, index, settings.streams), retry, settings.on_error, settings.error_limit
                    ),
                    (settings.seed, index, number),
                    settings.shuffle_window,
                    repeat=settings.repeat,
                    order=settings.order,
                    group=settings.group,
                    passes=None if settings.mixture is None else settings.mixture.passes[number],
                )
            )
            for number, source in enumerate(sources)
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows that were made."""
        return sum(rows.num_tokens for rows in self.by_source)

    @property
    def cuts(self) -> Cuts:
        """What the rows that were made lost by cutting."""
        return sum((rows.cuts for rows in self.by_source), Cuts())

    def next_row(self) -> tuple[Row, int] | None:
        """The next row and the index of its source; None when all sources have ended."""
        self._enter_stage()
        while (source := self._mixture.draw(self.num_rows)) is not None:
            row = self.by_source[source].next_row()
            if row is not None:
                self._mixture.drawn(source, self.num_rows)
                self.num_rows += 1
                return row, source
            self._mixture.drop(source)
        return None

    def pass_over(self) -> None:
        """Count a row that is made of no source, because all have ended."""
        self.num_rows += 1

    def _rows(self) -> Callable[[Windows], RowStream]:
        return self._settings.stage_rows[self._stage] if self._settings.stage_rows else self._settings.rows

    def _enter_stage(self) -> None:
        """Go on with the rows of the stage of the next row, where that changes their length."""
        if not self._settings.stage_rows:
            return
        assert isinstance(self._mixture, EvenMixture), "stages are part of a planned mixture"
        stage = self._mixture.part_of(self.num_rows)
        if stage == self._stage:
            return
        self._stage = stage
        for number, before in enumerate(self.by_source):
            after = self._rows()(before.windows)
            after.num_rows, after.num_documents = before.num_rows, before.num_documents
            after.num_tokens, after.cuts = before.num_tokens, before.cuts
            after.restore(before.position)
            self.by_source[number] = after

    def state(self) -> StreamState:
        """JSON-able, below 1 KB per source; after `load_state` a stream continues with bitwise identical rows."""
        state: StreamState = {
            "rows": self.num_rows,
            "sources": [rows.position.to_json() for rows in self.by_source],
        }
        if isinstance(self._mixture, EvenMixture):
            state["mixture"] = self._mixture.state()
        return state

    def load_state(self, state: StreamState) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: the state does not belong to this stream and these sources.
        """
        try:
            rows, positions = int(state["rows"]), [Position.from_json(value) for value in state["sources"]]
            if isinstance(self._mixture, EvenMixture) and "mixture" in state:
                self._mixture.load_state(state["mixture"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the data state of stream {self.index} is damaged ({error!r}); resume from an older checkpoint."
            ) from error
        if len(positions) != len(self.by_source):
            raise DataError(
                f"the data state is of {len(positions)} sources and data.train has {len(self.by_source)}; resume with "
                "the recipe of the checkpoint, or start a new run from its weights."
            )
        self.num_rows = rows
        self._enter_stage()
        for source, position in zip(self.by_source, positions, strict=True):
            source.restore(position)

    def close(self) -> None:
        for rows in self.by_source:
            rows.close()
