"""Tokenised documents give the batches of streaming: at any number of streams and ranks, windows and interruptions."""

from __future__ import annotations

import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.tokenized.documents import TokenizedSource
from shardyard.recipe.schema import Data, Source
from support.data_cases import batches, data, documents, global_rows, loader, merged_state, rows
from support.tokenizers.tokenized import tokenize_sources


def with_gaps(count: int, seed: int, prefix: str = "d") -> list[str]:
    shuffled = random.Random(seed)
    return [text if shuffled.random() > 0.15 else "" for text in documents(count, prefix)]


def write(folder: Path, kind: str, shards: list[list[str]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, texts in enumerate(shards):
        path = folder / f"part-{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), path, row_group_size=9)
        elif kind == "csv":
            path.write_text("n,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)))
        else:
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder / f"*.{kind}")


def reads_tokens(recipe: Data, **options: Any) -> bool:
    with loader(recipe, **options) as opened:
        return all(isinstance(source, TokenizedSource) for source in opened._sources)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(
    kind=st.sampled_from(["jsonl", "parquet", "csv"]),
    counts=st.lists(st.integers(20, 50), min_size=1, max_size=4),
    streams=st.sampled_from([5, 6, 7, 8]),
    window=st.sampled_from([1, 4, 64]),
    order=st.sampled_from([1, 2]),
    holdout=st.sampled_from([0.0, 0.2]),
    share=st.integers(0, 7),
    readers=st.integers(0, 4),
    step=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_batches_and_interruptions_are_those_of_streaming(
    kind: str,
    counts: list[int],
    streams: int,
    window: int,
    order: int,
    holdout: float,
    share: int,
    readers: int,
    step: int,
    seed: int,
) -> None:
    worlds = [ranks for ranks in range(1, 9) if streams % ranks == 0]
    world = worlds[share % len(worlds)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARDYARD_CACHE", f"{folder}/cache")
        path = write(Path(folder, "a"), kind, [with_gaps(count, seed) for count in counts])
        other = write(Path(folder, "b"), "jsonl", [with_gaps(40, seed + 1, "o")])
        sources = [Source(path=path, holdout=holdout), Source(path=other, weight=2.0)]
        recipe = data(sources, shuffle_window=window, order=order)
        world = math.gcd(world, streams)
        options: dict[str, Any] = {"streams": streams, "global_batch": streams, "seed": seed}
        streamed = global_rows(recipe, step + 3, world, **options)
        by_streaming = merged_state(recipe, step, world, **options)
        tokenize_sources(recipe)
        assert reads_tokens(recipe, **options)
        assert global_rows(recipe, step + 3, world, readers=readers, **options) == streamed
        by_tokens = merged_state(recipe, step, 1, **options)
        assert [rows(batch) for batch in batches(recipe, 3, by_streaming, readers=readers, **options)] == streamed[
            step:
        ]
        never = recipe.model_copy(update={"tokenized": "never"})
        assert not reads_tokens(never, **options)
        assert [rows(batch) for batch in batches(never, 3, by_tokens, **options)] == streamed[step:]
