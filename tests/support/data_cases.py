"""Small sources and their rows, shared by the tests of `data/`."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.loader import Batch, TrainLoader
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.recipe.schema import Data, Source

SEPARATOR = 256


@functools.cache
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("bytes")


def two_separators() -> PreTrainedTokenizerFast:
    """Bytes with bos 256 and eos 257."""
    backend = Tokenizer.from_str(bytes_tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="</s>")


def write_jsonl(folder: Path, shards: Sequence[Sequence[Any]], name: str = "part") -> str:
    """Write one file per shard; returns the glob for all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, texts in enumerate(shards):
        lines = [json.dumps({"text": text, "n": n}) for n, text in enumerate(texts)]
        (folder / f"{name}-{index:03d}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / f"{name}-*.jsonl")


def documents(count: int, prefix: str = "d", first: int = 0) -> list[str]:
    """Distinct texts of different lengths, none of which is part of another."""
    return [f"<{prefix}{n}:{'x' * (n * 7 % 23)}>" for n in range(first, first + count)]


def data(train: Sequence[Source], **options: Any) -> Data:
    return Data(**{"sequence_length": 16, "shuffle_window": 5, "prefetch": 2, "train": list(train), **options})


@contextmanager
def loader(recipe: Data, **options: Any) -> Iterator[TrainLoader]:
    context = FormatInputs(recipe, options.pop("tokenizer", bytes_tokenizer()))
    settings = {"global_batch": 4, "streams": 4, "seed": 7, "dp_rank": 0, "dp_size": 1}
    opened = TrainLoader(context, **{**settings, **options})
    try:
        yield opened
    finally:
        opened.close()


def batches(recipe: Data, count: int, state: dict[str, Any] | None = None, **options: Any) -> list[Batch]:
    """The first `count` batches, after `state` if given."""
    with loader(recipe, **options) as opened:
        if state is not None:
            opened.load_state(json.loads(json.dumps(state)))
        return [next(opened) for _ in range(count)]


Row = tuple[list[int], list[int], list[int], int]


def rows(batch: Batch) -> list[Row]:
    columns = (batch["input_ids"].tolist(), batch["labels"].tolist(), batch["position_ids"].tolist(), batch.row_sources)
    return list(zip(*columns, strict=True))


def global_rows(recipe: Data, count: int, dp_size: int, **options: Any) -> list[list[Row]]:
    """The rows of `count` global batches in the order of j, assembled from all ranks."""
    ranks = [batches(recipe, count, dp_rank=rank, dp_size=dp_size, **options) for rank in range(dp_size)]
    return [[row for parts in zip(*map(rows, step), strict=True) for row in parts] for step in zip(*ranks, strict=True)]


def merged_state(recipe: Data, steps: int, dp_size: int, **options: Any) -> dict[str, Any]:
    """The states of all streams after `steps` batches, as in a checkpoint."""
    merged: dict[str, Any] = {}
    for rank in range(dp_size):
        merged |= batches(recipe, steps, dp_rank=rank, dp_size=dp_size, **options)[-1].state
    return merged


def documents_of_stream(recipe: Data, stream: int, num_rows: int, streams: int) -> list[int]:
    """The inputs of the first rows of one stream, joined."""
    made = batches(recipe, num_rows, streams=streams, global_batch=streams)
    return [token for batch in made for token in batch["input_ids"][stream].tolist()]


def split_documents(tokens: Sequence[int]) -> list[str]:
    """Texts between separators; the last may be cut."""
    texts: list[list[int]] = []
    for token in tokens:
        if token == SEPARATOR:
            texts.append([])
        else:
            texts[-1].append(token)
    return [bytes(text).decode() for text in texts]
