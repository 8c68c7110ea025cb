"""Tokens a second of tokenised and of streamed documents, beside the `tokenizers` library alone and copies in memory.

One thread reads 16 Parquet files or one JSONL file: the library alone encodes the texts; streaming makes batches of
them; tokenised, batches are made of the tokens on the disk; `copy` copies the same tokens in memory into rows of 64-bit
ids, which is what a batch at least takes. Also the CPU seconds up to the first batch, and up to the first batch after a
state late in the data. The arms take turns, and the best turn of each counts.

    python tests/benchmarks/tokenized_text.py --tokenizer bpe-docs-4k
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.tokenized import making
from shardyard.data.tokenized.stored import TokenSet
from shardyard.data.tokenizers.tokenizer import load_tokenizer, plain_backend
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sources.token_sets import tokenized_root

FILES, STREAMS, LENGTH = 16, 64, 1024
BATCH = 64


def texts_of(megabytes: int) -> list[str]:
    """Documents of made-up words of lengths as in prose."""
    chosen = random.Random(5)
    words = ["".join(chosen.choices("etaoinshrdlu", k=chosen.randint(2, 9))) for _ in range(5000)]
    found, size = [], 0
    while size < megabytes * 1_000_000:
        found.append(" ".join(chosen.choices(words, k=chosen.randint(30, 900))))
        size += len(found[-1])
    return found


def write(folder: Path, kind: str, texts: list[str]) -> str:
    """The documents in files; returns the path that a recipe names."""
    if kind == "jsonl":
        with (folder / "all.jsonl").open("w") as file:
            for text in texts:
                file.write(json.dumps({"text": text}) + "\n")
        return str(folder / "all.jsonl")
    for number in range(FILES):
        pq.write_table(pa.table({"text": texts[number::FILES]}), folder / f"{number:02}.parquet", row_group_size=500)
    return str(folder / "*.parquet")


def recipe_of(path: str, tokenizer: str, way: str) -> Recipe:
    """A small GPT-2 on this data."""
    return parse_recipe(
        {
            "name": "tokens",
            "model": {"family": "gpt2", "config": {"n_layer": 1, "n_embd": 8, "n_head": 1, "n_positions": LENGTH}},
            "tokenizer": tokenizer,
            "data": {
                "sequence_length": LENGTH,
                "streams": STREAMS,
                "tokenized": way,
                "train": [{"path": path, "holdout": 0.01}],
            },
            "train": {"steps": 1, "global_batch": BATCH},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "cosine", "warmup": 0},
        }
    )


def make_set(recipe: Recipe) -> float:
    """Tokenise the data with one process; seconds."""
    started = time.perf_counter()
    prepared = making.prepare_set(recipe, recipe.data.train[0], tokenized_root(), training=True)
    assert isinstance(prepared, making.Prepared)
    for task in prepared.tasks:
        making.run_task(prepared.work, task)
    making.finish_set(prepared, 0.0)
    return time.perf_counter() - started


def loader_of(recipe: Recipe) -> TrainLoader:
    """The loader of one rank."""
    inputs = FormatInputs(recipe.data, load_tokenizer(recipe.tokenizer))
    return TrainLoader(inputs, global_batch=BATCH, streams=STREAMS, seed=1, dp_rank=0, dp_size=1)


def batches_a_second(recipe: Recipe, tokens: int) -> float:
    """Tokens a second of batches, the first one left out."""
    loader = loader_of(recipe)
    try:
        next(loader)
        started, made = time.process_time(), 0
        while made < tokens:
            next(loader)
            made += BATCH * LENGTH
        return made / (time.process_time() - started)
    finally:
        loader.close()


def seconds_to_first(recipe: Recipe, state: object = None) -> float:
    """CPU seconds to the first batch, from the start or after a state."""
    started = time.process_time()
    loader = loader_of(recipe)
    try:
        if state is not None:
            loader.load_state(state)  # type: ignore[arg-type]
        next(loader)
        return time.process_time() - started
    finally:
        loader.close()


def state_after(recipe: Recipe, batches: int) -> object:
    """The state of all streams after some batches."""
    loader = loader_of(recipe)
    try:
        for _ in range(batches - 1):
            next(loader)
        return json.loads(json.dumps(next(loader).state))
    finally:
        loader.close()


def copied_a_second(folder: Path, tokens: int) -> float:
    """Tokens a second of copies from the maps into inputs, labels and positions of 64 bits."""
    parts = TokenSet(folder).dataset().parts
    rows = [row.tokens for part in parts for row in part.rows(range(part.num_rows()))]  # type: ignore[union-attr]
    everything = np.concatenate(rows)
    started, made, at = time.process_time(), 0, 0
    while made < tokens:
        block = everything[at : at + LENGTH + 1]
        inputs, labels, positions = np.empty((3, len(block) - 1), np.int64)
        inputs[:], labels[:], positions[:] = block[:-1], block[1:], np.arange(len(block) - 1)
        made, at = made + LENGTH, (at + LENGTH) % (len(everything) - LENGTH - 1)
    return made / (time.process_time() - started)


def measure(kind: str, folder: Path, texts: list[str], tokenizer: str, turns: int) -> None:
    """Print the rates and seconds of all arms for one kind of file."""
    backend = plain_backend(load_tokenizer(tokenizer))
    few = texts[:: max(1, len(texts) // 2000)]
    path = write(folder, kind, texts)
    streamed, tokenized = (recipe_of(path, tokenizer, way) for way in ("never", "always"))
    seconds = make_set(tokenized)
    (made,) = tokenized_root().iterdir()
    number = TokenSet(made).manifest.counts.tokens

    def alone() -> float:
        started = time.process_time()
        parts = (few[first : first + 32] for first in range(0, len(few), 32))
        found = sum(len(one) for part in parts for one in backend.encode_batch_fast(part, add_special_tokens=False))
        return found / (time.process_time() - started)

    arms: dict[str, Callable[[], float]] = {
        "tokenizers alone": alone,
        "streamed": lambda: batches_a_second(streamed, min(number, 2_000_000)),
        "tokenised": lambda: batches_a_second(tokenized, number),
        "copy in memory": lambda: copied_a_second(made, number),
    }
    best = dict.fromkeys(arms, 0.0)
    for _ in range(turns):
        for name, arm in arms.items():
            best[name] = max(best[name], arm())
    say(f"{kind}, {tokenizer}: {number / 1e6:.1f}M tokens made in {seconds:.1f} s by one process")
    for name, rate in best.items():
        say(f"  {name:17} {rate / 1e6:8.2f} M tokens/s  {rate / best['tokenizers alone']:6.2f}")
    late = state_after(tokenized, max(1, number // (BATCH * LENGTH) - 2))
    for name, recipe in (("streamed", streamed), ("tokenised", tokenized)):
        first = min(seconds_to_first(recipe) for _ in range(turns))
        again = min(seconds_to_first(recipe, late) for _ in range(turns))
        say(f"  {name:17} first batch {first:5.2f} s, resumed at the end of the data {again:5.2f} s (CPU)")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--megabytes", type=int, default=40)
    options.add_argument("--tokenizer", default="bpe-docs-4k")
    options.add_argument("--turns", type=int, default=3)
    given = options.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = texts_of(given.megabytes)
    for kind in ("parquet", "jsonl"):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SHARDYARD_CACHE"] = f"{folder}/cache"
            measure(kind, Path(folder), texts, given.tokenizer, given.turns)


if __name__ == "__main__":
    main()
