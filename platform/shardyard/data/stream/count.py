"""Number of rows of one pass over the training data, counted by producing them once without the costly parts."""

from __future__ import annotations

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_for
from shardyard.data.stream.examples import ExampleStream
from shardyard.data.stream.first_rows import is_local
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.stream.shuffle import Windows
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec


def count_rows(inputs: FormatInputs, objective: str, seed: int) -> int:
    """Rows of one pass over the only source of `data.train`; the last row of packed documents may be partly filled.

    Raises:
        DataError: the source is not on this machine, or cannot be read.
    """
    (source,) = inputs.data.train
    if not is_local(source):
        raise DataError(
            f"train.epochs: {source.path} is not a file of this machine, so its rows cannot be counted before "
            "training; give train.steps or train.tokens."
        )
    spec = objective_spec(objective)
    opened = open_for(spec, source, training=True)
    reader = ShareReader(share_of(opened, 0, 1), Retry(), inputs.data.on_error)
    stream = make_rows(objective, inputs).stream(
        Windows(reader, (seed, 0, 0), inputs.data.shuffle_window, repeat=False)
    )
    try:
        if isinstance(stream, ExampleStream):
            return stream.count_pieces()
        while stream.next_row() is not None:
            pass
        return stream.num_rows
    finally:
        stream.close()
