"""Number of rows of one pass over the training data, counted by producing them once without the costly parts."""

from __future__ import annotations

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.mixture.sizes import counted
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource
from shardyard.data.stream.examples import ExampleStream
from shardyard.data.stream.first_rows import is_local
from shardyard.data.stream.reader import Share, ShareReader, share_of, with_shards
from shardyard.data.stream.shuffle import Windows
from shardyard.data.tokenized.opening import open_documents
from shardyard.data.tokenizers.tokenizer import fingerprint
from shardyard.errors import DataError
from shardyard.recipe.isolation import packs_best_fit
from shardyard.recipe.schema import Source

# Fields of `data` that do not change the rows of a source; others are part of the key of a count.
_MIXING = {"train", "validation", "temperature", "stages", "streams", "retry_seconds", "prefetch"}


def count_rows(inputs: FormatInputs, objective: str, seed: int, *, streams: int = 1) -> int:
    """Rows of one pass over all sources of `data.train`; the last row of packed documents may be partly filled.

    Args:
        streams: of the run, by which windows are divided that are packed best-fit; other rows do not depend on them.

    Raises:
        DataError: a source is not on this machine, or cannot be read.
    """
    number = streams if packs_best_fit(inputs.data) else 1
    return sum(_counted(inputs, objective, source, seed, number) for source in inputs.data.train)


def _counted(inputs: FormatInputs, objective: str, source: Source, seed: int, number: int) -> int:
    if not is_local(source):
        raise DataError(
            f"train.epochs: {source.path} is not a file of this machine, so its rows cannot be counted before "
            "training; give train.steps or train.tokens, and `epochs` of the source to end after so many passes."
        )
    opened = with_shards(open_documents(inputs, objective, source, training=True), number)
    tokenizer = None if inputs.tokenizer is None else fingerprint(inputs.tokenizer)
    model = None if inputs.model is None else inputs.model.to_dict()
    sections = [inputs.masking, inputs.image, inputs.audio, inputs.answering, inputs.embedding, inputs.chat]
    key = {
        "rows": opened.fingerprint,
        "source": source.model_dump(exclude={"weight", "size", "epochs", "tokens"}),
        "objective": objective,
        "data": inputs.data.model_dump(exclude=_MIXING),
        "sections": [section.model_dump() for section in sections],
        "tokenizer": tokenizer,
        "model": model,
        "seed": seed,
        "streams": number,
    }
    return counted(key, lambda: _of_shares(inputs, objective, opened, seed, number))


def _of_shares(inputs: FormatInputs, objective: str, opened: OpenSource, seed: int, number: int) -> int:
    return sum(_rows(inputs, objective, share_of(opened, stream, number), seed) for stream in range(number))


def _rows(inputs: FormatInputs, objective: str, share: Share, seed: int) -> int:
    reader = ShareReader(share, Retry(), inputs.data.on_error)
    stream = make_rows(objective, inputs).stream(
        Windows(reader, (seed, share.stream, 0), inputs.data.shuffle_window, repeat=False, order=inputs.data.order)
    )
    try:
        if isinstance(stream, ExampleStream):
            return stream.count_pieces()
        while stream.next_row() is not None:
            pass
        return stream.num_rows
    finally:
        stream.close()
