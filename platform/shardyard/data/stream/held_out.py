"""The held-out rows of an evaluation: always the same, each example once.

Legend: E = existing rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import source_name
from shardyard.data.stream.held_out_file import keep, kept, key_of
from shardyard.data.stream.left_out import LeftOutCounts, added, filtered_in_words, left_out_in_words
from shardyard.data.stream.rows import Row, Rows, Tensors
from shardyard.data.stream.streams import Stream, StreamSettings
from shardyard.data.tokenized.opening import open_documents
from shardyard.errors import DataError
from shardyard.recipe import schema

SET_NAME = "validation"


@dataclass(frozen=True)
class RowFile:
    """A file for held-out rows, and all settings, beside the data, on which the rows depend.

    Without `keep` it is only read.
    """

    path: Path
    settings: Mapping[str, object]
    keep: bool = True


@dataclass(frozen=True)
class HeldOut:
    """Rows of held-out examples, E ≤ `num_requested`.

    `row_sources` holds the index of each row's source in `sources`, the names of the sources [E].
    """

    name: str
    rows: tuple[Row, ...]
    format: Rows
    row_sources: tuple[int, ...]
    sources: tuple[str, ...]
    fingerprints: tuple[Mapping[str, object], ...]
    num_requested: int
    left_out: LeftOutCounts | None = None

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> torch.Tensor:
        """One of the model's inputs for all rows, [E, …]."""
        return self.pick(range(self.num_rows))[name]

    def pick(self, rows: Sequence[int]) -> Tensors:
        """The model's inputs of some rows, by name."""
        return self.format.collate([self.rows[row] for row in rows])

    def describe(self) -> str:
        """`64 rows of python-docs`; also says if the data ended earlier."""
        short = f" ({self.num_requested} were asked for; the data ends)" if self.num_rows < self.num_requested else ""
        number = self.num_left_out
        left_out = f"; {left_out_in_words(number, self.left_out['named'])}" if self.left_out and number else ""
        filtered = f"; {filtered_in_words(self.filtered)}" if self.filtered else ""
        return f"{self.num_rows} rows of {', '.join(self.sources)}{short}{left_out}{filtered}"

    @property
    def filtered(self) -> Mapping[str, int]:
        """Rows that data.filters removed, by step and reason."""
        return self.left_out.get("filtered", {}) if self.left_out else {}

    @property
    def num_left_out(self) -> int:
        """Rows that were left out because nothing can be measured on them."""
        return self.left_out["unusable"] + self.left_out["without_target"] if self.left_out else 0


def validation_sources(data: schema.Data) -> list[schema.Source]:
    """The sources of evaluation: data.validation, or else what the training sources hold out (possibly nothing).

    An embedded corpus or dataset holds out its split `validation`, any other source the share given by `holdout`.
    """
    if data.validation:
        return list(data.validation)
    held_split = {"split": "validation", "holdout": 0.0}
    embedded = [source.model_copy(update=held_split) for source in data.train if source.source is not None]
    return embedded + [source for source in data.train if source.source is None and source.holdout > 0.0]


def held_out_rows(
    inputs: FormatInputs, rows: int, seed: int, *, objective: str = "causal_lm", file: RowFile | None = None
) -> HeldOut:
    """The first `rows` rows of the validation sources, mixed by their weights, in an order determined by `seed`.

    No example is repeated: if the data ends there are fewer rows, and the last row of a source may contain padding
    without targets.

    Args:
        file: where these rows are read if they have been made before, and else kept.

    Raises:
        DataError: nothing is held out, or a source cannot be read.
    """
    data = inputs.data
    chosen = validation_sources(data)
    if not chosen:
        names = ", ".join(source_name(source) for source in data.train)
        raise DataError(f"nothing is held out: give data.validation, or a `holdout` such as 0.01 to {names}.")
    retry = Retry(data.retry_seconds)
    sources = [open_documents(inputs, objective, source, training=False, retry=retry) for source in chosen]
    format_ = make_rows(objective, inputs)
    settings = StreamSettings(
        format_.stream,
        data.shuffle_window,
        1,
        seed,
        repeat=False,
        on_error=data.on_error,
        error_limit=data.error_limit,
    )
    key = None if file is None else key_of({"rows": rows, "seed": seed, "settings": file.settings}, sources)
    found = None if file is None or key is None else kept(file.path, key)
    if found is not None:
        made, left_out, format_.num_cut = found
    else:
        # A source that only a later stage trains on is measured too.
        stream = Stream(0, sources, [source.weight or 1.0 for source in chosen], settings, retry)
        try:
            made = _read(stream, rows)
        finally:
            stream.close()
        left_out = added([one.windows.reader.left_out.counts() for one in stream.by_source])
        if not made:
            raise DataError(_nothing_to_measure([source.name for source in sources], left_out))
        if file is not None and key is not None and file.keep:
            keep(file.path, key, (made, left_out, format_.num_cut))
    return HeldOut(
        name=SET_NAME,
        rows=tuple(row for row, _ in made),
        format=format_,
        row_sources=tuple(source for _, source in made),
        sources=tuple(source.name for source in sources),
        fingerprints=tuple(source.fingerprint for source in sources),
        num_requested=rows,
        left_out=left_out,
    )


def _nothing_to_measure(sources: Sequence[str], left_out: LeftOutCounts) -> str:
    number = left_out["unusable"] + left_out["without_target"]
    found = [left_out_in_words(number, left_out["named"])] if number else []
    found += [filtered_in_words(left_out["filtered"])] if left_out.get("filtered") else []
    why = f": {'; '.join(found)}" if found else ": it has no rows"
    return (
        f"the evaluation on {', '.join(sources)} has no target{why}. Give rows room for their targets "
        "(data.sequence_length), or other data under data.validation."
    )


def _read(stream: Stream, rows: int) -> list[tuple[Row, int]]:
    made: list[tuple[Row, int]] = []
    while len(made) < rows and (row := stream.next_row()) is not None:
        made.append(row)
    return made
