"""CPU seconds and memory up to the first batch of one large JSONL file, by the number of streams, and of a resumed run.

Each arm is a process of its own, which reads the file by its index or, as without one, from its start once a stream.
Only what comes after the imports is measured.

    python tests/benchmarks/first_batch.py --megabytes 100
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardyard.data.index.offsets import offsets_of
from shardyard.data.index.records import JsonLines
from shardyard.recipe.schema import Order

STREAMS = (1, 16, 64)
GLOBAL_BATCH = 64
# By index or not, and data.order.
WAYS: tuple[tuple[bool, Order], ...] = ((False, 1), (True, 1), (True, 2))
LONG, SHORT = 6000, 100
DEEP = 1_000_000


@dataclass(frozen=True)
class Arm:
    """One measurement: how the file is read, by how many streams, and the document at which reading begins."""

    indexed: bool
    streams: int
    order: Order = 1
    document: int = 0

    @property
    def how(self) -> str:
        """How the rows are read, in words."""
        return f"order {self.order}" if self.indexed else "streamed"


@dataclass(frozen=True)
class Cost:
    """CPU seconds, and MB of memory beyond that of the imports."""

    cpu_seconds: float
    megabytes: float


def write(path: Path, megabytes: int, length: int) -> None:
    """Documents of about `length` characters, all different."""
    with path.open("w") as file:
        for number in range(megabytes * 1_000_000 // length):
            words = " ".join(f"w{number * 7 + n}" for n in range(length // 9))
            file.write(json.dumps({"text": words, "id": number, "url": f"https://example.org/{number}"}) + "\n")


def measure(path: Path, arm: Arm) -> Cost:
    """The cost of the first batch in this process."""
    from shardyard.data.formats import FormatInputs
    from shardyard.data.stream import reader
    from shardyard.data.stream.loader import TrainLoader
    from shardyard.data.tokenizers.tokenizer import load_tokenizer
    from shardyard.recipe.schema import Data, Source

    if not arm.indexed:
        reader.indexed_files = lambda *_: None  # type: ignore[assignment]
    data = Data(sequence_length=1024, prefetch=1, train=[Source(path=str(path))], order=arm.order)
    inputs = FormatInputs(data, load_tokenizer("bytes"))
    cpu, memory = time_of_process(), peak_megabytes()
    loader = TrainLoader(inputs, global_batch=GLOBAL_BATCH, streams=arm.streams, seed=1, dp_rank=0, dp_size=1)
    if arm.document:
        loader.load_state(_state(arm, data.shuffle_window))
    next(loader)
    cost = Cost(time_of_process() - cpu, peak_megabytes() - memory)
    loader.close()
    return cost


def _state(arm: Arm, window: int) -> dict[str, object]:
    """The state of a run that has come to the window of a document, as a checkpoint holds it."""
    index, rest = divmod(arm.document, window * arm.streams)
    begin = arm.document - rest
    streamed = {"examples_iterable": {"examples_iterable": {"shard_idx": 0, "shard_example_idx": 0,
                "type": "ArrowExamplesIterable"}, "previous_state": None, "batch_idx": 0,
                "num_chunks_since_previous_state": begin // 256, "cropped_chunk_length": 0,
                "type": "RebatchedArrowExamplesIterable"}, "epoch": 0}  # fmt: skip
    cursor = {"state": {"file": 0, "before": 0} if arm.indexed else streamed, "example": begin, "row": 0}
    place = {"epoch": 0, "window": index, "cursor": cursor, "document": 0, "offset": 0}
    return {str(stream): {"rows": 0, "sources": [place]} for stream in range(arm.streams)}


def time_of_process() -> float:
    """CPU seconds of this process, with all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_megabytes() -> float:
    """The largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(path: Path, arm: Arm, cache: Path, *more: str) -> Cost:
    """The cost of an arm, measured in a process of its own."""
    arguments = json.dumps([str(path), arm.indexed, arm.streams, arm.order, arm.document])
    environment = {**os.environ, "SHARDYARD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *more, "--arm", arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return Cost(*json.loads(done.stdout))


def rows(folder: Path, megabytes: int, deep: int) -> Iterator[tuple[str, Arm, Cost]]:
    """All measurements, each with a title."""
    long, short = folder / "long.jsonl", folder / "short.jsonl"
    write(long, megabytes, LONG)
    for indexed, order in WAYS:
        for streams in STREAMS:
            arm = Arm(indexed, streams, order)
            # A cache of its own, so that the index is built in each measurement.
            yield "first batch", arm, in_a_process(long, arm, Path(tempfile.mkdtemp(dir=folder)))
    long.unlink()
    write(short, -(-(deep + 100_000) * SHORT * 13 // 10 // 1_000_000), SHORT)
    for indexed, order in WAYS:
        for document in (10, deep):
            arm = Arm(indexed, 1, order, document=document)
            # The run before has found all rows.
            in_a_process(short, arm, folder / "kept", "--index")
            yield "resume", arm, in_a_process(short, arm, folder / "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--deep", type=int, default=DEEP, help="document at which a run is resumed")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--index", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        path, *arm = json.loads(options.arm)
        if options.index:
            offsets_of(Path(path), JsonLines()).known(1 << 62)
        cost = measure(Path(path), Arm(*arm))
        sys.stdout.write(json.dumps([cost.cpu_seconds, cost.megabytes]))
        return
    table = "{:12} {:9} {:>7} {:>9} {:>7} {:>6}\n"
    sys.stdout.write(table.format("", "read", "streams", "document", "CPU s", "MB"))
    with tempfile.TemporaryDirectory() as folder:
        for title, arm, cost in rows(Path(folder), options.megabytes, options.deep):
            seconds = f"{cost.cpu_seconds:.2f}"
            sys.stdout.write(table.format(title, arm.how, arm.streams, arm.document, seconds, f"{cost.megabytes:.0f}"))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
