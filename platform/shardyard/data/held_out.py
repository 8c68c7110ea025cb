"""The held-out rows of an evaluation: the same ones each time, each document once.

Legend: E = rows that there are, T = sequence length in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from shardyard.data.lanes import Lane, LaneSettings
from shardyard.data.packing import IGNORED, DocumentEncoder
from shardyard.data.retry import Retry
from shardyard.data.sources import open_source, source_name
from shardyard.errors import DataError
from shardyard.recipe import schema

SET_NAME = "validation"


@dataclass(frozen=True)
class HeldOut:
    """Rows of held-out documents: int64 tensors [E, T] as in `Batch`, E ≤ `num_requested`.

    `row_sources` holds for each row the index in `sources`, the names of what was read [E]. `num_targets` counts the
    labels that are not -100.
    """

    name: str
    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    row_sources: tuple[int, ...]
    sources: tuple[str, ...]
    fingerprints: tuple[dict[str, Any], ...]
    num_requested: int
    num_targets: int

    @property
    def num_rows(self) -> int:
        return len(self.row_sources)

    def describe(self) -> str:
        """`64 rows of python-docs`, and if so that the data ended earlier."""
        short = f" ({self.num_requested} were asked for; the data ends)" if self.num_rows < self.num_requested else ""
        return f"{self.num_rows} rows of {', '.join(self.sources)}{short}"


def validation_sources(data: schema.Data) -> list[schema.Source]:
    """The sources of evaluation: data.validation, or else what the training sources hold out (possibly nothing).

    An embedded corpus holds out its split `validation`, another source what `holdout` keeps back.
    """
    if data.validation:
        return list(data.validation)
    held_split = {"split": "validation", "holdout": 0.0}
    embedded = [source.model_copy(update=held_split) for source in data.train if source.source is not None]
    return embedded + [source for source in data.train if source.source is None and source.holdout > 0.0]


def held_out_rows(data: schema.Data, tokenizer: PreTrainedTokenizerFast, rows: int, seed: int) -> HeldOut:
    """The first `rows` rows of the validation sources, mixed by their weights, in an order that `seed` decides.

    No document comes twice: where the data ends there are fewer rows, and the last of a source may hold padding without
    targets.

    Raises:
        DataError: nothing is held out, or a source cannot be read.
    """
    chosen = validation_sources(data)
    if not chosen:
        names = ", ".join(source_name(source) for source in data.train)
        raise DataError(f"nothing is held out: give data.validation, or a `holdout` such as 0.01 to {names}.")
    sources = [open_source(source, training=False) for source in chosen]
    settings = LaneSettings(data.sequence_length, data.shuffle_window, data.isolate_documents, 1, seed, repeat=False)
    lane = Lane(0, sources, [source.weight for source in chosen], DocumentEncoder(tokenizer), settings, Retry())
    try:
        tensors, row_sources = _read(lane, rows, data.sequence_length)
    finally:
        lane.close()
    return HeldOut(
        name=SET_NAME,
        input_ids=tensors[0],
        labels=tensors[1],
        position_ids=tensors[2],
        row_sources=tuple(row_sources),
        sources=tuple(source.name for source in sources),
        fingerprints=tuple(source.fingerprint for source in sources),
        num_requested=rows,
        num_targets=int((tensors[1] != IGNORED).sum()),
    )


def _read(lane: Lane, rows: int, length: int) -> tuple[torch.Tensor, Sequence[int]]:
    """Tensors [3, E, T] and the source of each row [E]."""
    tensors = torch.empty((3, rows, length), dtype=torch.int64)
    arrays = tensors.numpy()
    sources: list[int] = []
    while len(sources) < rows:
        source = lane.fill(*arrays[:, len(sources)])
        if source is None:
            break
        sources.append(source)
    return tensors[:, : len(sources)].clone(), sources
