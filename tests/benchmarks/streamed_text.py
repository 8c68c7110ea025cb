"""Tokens per CPU second of streamed, packed text, as a ratio to the `tokenizers` library alone on the same texts.

Every measurement is a process of its own on one core; arms alternate, and each is the best of several. The library
tokenises texts that are in memory; the loader also reads, decodes, shuffles, packs and collates them.

With --memory: resident memory while 2 GB of JSON Lines are read as bytes, after each tenth.

    python tests/benchmarks/streamed_text.py --megabytes 70
    python tests/benchmarks/streamed_text.py --memory 2000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GLOBAL_BATCH, LENGTH, DOCUMENT = 64, 1024, 4000
WARM, MEASURED = 4_000_000, 6_000_000
TOKENIZERS = ("bpe-docs-4k", "bytes")


@dataclass(frozen=True)
class Arm:
    """What is measured: `library`, or the loader on `parquet` or `jsonl`."""

    what: str
    tokenizer: str
    streams: int = 16
    order: int = 1
    readers: int = 0


@dataclass(frozen=True)
class Speed:
    """Tokens per CPU second, and per second."""

    per_cpu_second: float
    per_second: float


def corpus(megabytes: float) -> list[str]:
    """Sources of installed packages, in a fixed order."""
    texts: list[str] = []
    size = 0
    for path in sorted(Path(pa.__file__).parents[1].rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        # As long as pages of the web.
        for first in range(0, len(text), DOCUMENT):
            if text[first : first + DOCUMENT].strip():
                texts.append(text[first : first + DOCUMENT])
        size += len(text)
        if size > megabytes * 1e6:
            break
    return texts


def write(folder: Path, texts: list[str]) -> None:
    """The texts as 16 Parquet files, and as one file of JSON Lines."""
    for number in range(16):
        pq.write_table(pa.table({"text": texts[number::16]}), folder / f"part-{number:02d}.parquet")
    (folder / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def measure(folder: Path, arm: Arm) -> Speed:
    """The speed of one arm, in this process."""
    from shardyard.data.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(arm.tokenizer)
    return _library(folder, tokenizer) if arm.what == "library" else _loader(folder, tokenizer, arm)


def _library(folder: Path, tokenizer: object) -> Speed:
    from shardyard.data.tokenizers.tokenizer import plain_backend

    texts = [text for path in sorted(folder.glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]
    backend, tokens = plain_backend(tokenizer), 0  # type: ignore[arg-type]
    before = _clock()
    for first in range(0, len(texts), 32):
        found = backend.encode_batch_fast(texts[first : first + 32], add_special_tokens=False)
        tokens += sum(map(len, found))
    return _speed(tokens, before)


def _loader(folder: Path, tokenizer: object, arm: Arm, warm: int = WARM, tokens: int = MEASURED) -> Speed:
    from shardyard.data.formats import FormatInputs
    from shardyard.data.stream.loader import TrainLoader
    from shardyard.recipe.schema import Data, Source

    path = folder / ("part-*.parquet" if arm.what == "parquet" else "all.jsonl")
    data = Data(sequence_length=LENGTH, prefetch=1, train=[Source(path=str(path))], order=arm.order)  # type: ignore[arg-type]
    loader = TrainLoader(
        FormatInputs(data, tokenizer),  # type: ignore[arg-type]
        global_batch=GLOBAL_BATCH,
        streams=arm.streams,
        seed=1,
        dp_rank=0,
        dp_size=1,
        readers=arm.readers,
    )
    # Streams begin with the first documents of a window, and each tokenises some ahead: measured is what follows.
    while _tokens(loader) < warm:
        next(loader)
    before, begun = _clock(), _tokens(loader)
    while _tokens(loader) < begun + tokens:
        next(loader)
    speed = _speed(_tokens(loader) - begun, before)
    loader.close()
    return speed


def memory(folder: Path, megabytes: int) -> list[float]:
    """MB of resident memory after each tenth of what is read."""
    import psutil

    from shardyard.data.formats import FormatInputs
    from shardyard.data.stream.loader import TrainLoader
    from shardyard.data.tokenizers.tokenizer import load_tokenizer
    from shardyard.recipe.schema import Data, Source

    data = Data(sequence_length=LENGTH, train=[Source(path=str(folder / "all.jsonl"))])
    inputs = FormatInputs(data, load_tokenizer("bytes"))
    loader = TrainLoader(inputs, global_batch=GLOBAL_BATCH, streams=64, seed=1, dp_rank=0, dp_size=1, readers=2)
    found, tokens = [], 0
    for tenth in range(1, 11):
        while tokens < tenth * megabytes * 100_000:
            next(loader)
            tokens += GLOBAL_BATCH * LENGTH
        found.append(psutil.Process().memory_info().rss / 1e6)
    loader.close()
    return found


def _tokens(loader: Any) -> int:
    """Of all rows that were made, also those that wait."""
    return sum(stream.num_tokens for stream in loader._feed.rows.streams.values())


def _clock() -> tuple[float, float]:
    import time

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, time.perf_counter()


def _speed(tokens: int, before: tuple[float, float]) -> Speed:
    cpu, wall = _clock()
    return Speed(tokens / (cpu - before[0]), tokens / (wall - before[1]))


def in_a_process(folder: Path, arm: Arm) -> Speed:
    """The speed of an arm, in a process of its own on one core."""
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "SHARDYARD_CACHE": str(folder / "cache"),
    }
    arguments = json.dumps([str(folder), asdict(arm)])
    done = subprocess.run(
        [sys.executable, __file__, "--arm", arguments], env=environment, capture_output=True, text=True, check=True
    )
    return Speed(*json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, help="megabytes to read")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        folder, arm = json.loads(options.arm)
        speed = measure(Path(folder), Arm(**arm))
        sys.stdout.write(json.dumps([speed.per_cpu_second, speed.per_second]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, corpus(options.megabytes))
        if options.memory:
            sys.stdout.write(" ".join(f"{value:.0f}" for value in memory(folder, options.memory)) + " MB\n")
            return
        table = "{:12} {:8} {:>7} {:>5} {:>7} {:>14} {:>6}\n"
        sys.stdout.write(table.format("tokenizer", "read", "streams", "order", "readers", "tokens / CPU s", "ratio"))
        for tokenizer in TOKENIZERS:
            arms = [
                Arm("library", tokenizer),
                Arm("parquet", tokenizer),
                Arm("jsonl", tokenizer, streams=64),
                Arm("jsonl", tokenizer, streams=64, order=2),
                Arm("parquet", tokenizer, readers=2),
            ]
            rounds = [[in_a_process(folder, arm) for arm in arms] for _ in range(options.repeats)]
            best = [max(speed.per_cpu_second for speed in of_arm) for of_arm in zip(*rounds, strict=True)]
            for arm, speed in zip(arms, best, strict=True):
                ratio = f"{speed / best[0]:.2f}"
                sys.stdout.write(
                    table.format(tokenizer, arm.what, arm.streams, arm.order, arm.readers, f"{speed:,.0f}", ratio)
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
