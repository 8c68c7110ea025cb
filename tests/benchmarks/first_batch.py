"""CPU seconds and memory up to the first batch of one large file, by format and streams, of a resumed run; requests.

Each arm is a process of its own, which reads the file by the numbers of its rows or, as without an index, from its
start. Only what comes after the imports is measured. Requests are those to a server of this process.

    python tests/benchmarks/first_batch.py --megabytes 100
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from shardyard.data.index.rows import indexed_files
from shardyard.data.index.unpacked import make_copy
from shardyard.data.sources.sources import open_source
from shardyard.data.stream.share import share_of
from shardyard.recipe.schema import Order, Source
from support.data_cases import batches, data
from support.servers.stumbling import serving

STREAMS = (1, 16, 64)
GLOBAL_BATCH = 64
FORMATS = (".jsonl", ".csv", ".parquet", ".jsonl.gz")
# By index or not, and data.order.
WAYS: tuple[tuple[bool, Order], ...] = ((False, 1), (True, 1), (True, 2))
LONG, SHORT = 6000, 100
DEEP = 1_000_000
GROUP_BYTES = 8_000_000


@dataclass(frozen=True)
class Arm:
    """One measurement: how the file is read, by how many streams, and the document at which reading begins.

    unpacked: a compressed file has been unpacked by an earlier start.
    """

    indexed: bool
    streams: int
    order: Order = 1
    document: int = 0
    unpacked: bool = False

    @property
    def how(self) -> str:
        """How the rows are read, in words."""
        return f"order {self.order}" if self.indexed else "streamed"


@dataclass(frozen=True)
class Cost:
    """CPU seconds, and MB of memory beyond that of the imports."""

    cpu_seconds: float
    megabytes: float


def documents(megabytes: int, length: int) -> Iterator[str]:
    """Documents of about `length` characters, all different."""
    for number in range(megabytes * 1_000_000 // length):
        yield " ".join(f"w{number * 7 + n}" for n in range(length // 9))


def write(folder: Path, form: str, megabytes: int, length: int) -> Path:
    """A file of documents with further columns."""
    path = folder / f"data{form}"
    rows = ((text, number, f"https://example.org/{number}") for number, text in enumerate(documents(megabytes, length)))
    names = ("text", "id", "url")
    if form == ".parquet":
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        pq.write_table(pa.table(columns), path, row_group_size=GROUP_BYTES // length)
        return path
    with gzip.open(path, "wt", 1) if form.endswith(".gz") else path.open("w", newline="") as file:
        if form == ".csv":
            csv.writer(file).writerows([names, *rows])
        else:
            file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    return path


def measure(path: Path, arm: Arm) -> Cost:
    """The cost of the first batch in this process."""
    from shardyard.data.formats import FormatInputs
    from shardyard.data.stream import reader
    from shardyard.data.stream.loader import TrainLoader
    from shardyard.data.tokenizers.tokenizer import load_tokenizer
    from shardyard.recipe.schema import Data

    if not arm.indexed:
        reader.indexed_files = lambda *_: None  # type: ignore[assignment]
    source = Source(path=str(path), unpack=arm.unpacked)
    recipe = Data(sequence_length=1024, prefetch=1, train=[source], order=arm.order)
    inputs = FormatInputs(recipe, load_tokenizer("bytes"))
    cpu, memory = time_of_process(), peak_megabytes()
    loader = TrainLoader(inputs, global_batch=GLOBAL_BATCH, streams=arm.streams, seed=1, dp_rank=0, dp_size=1)
    if arm.document:
        loader.load_state(_state(arm, recipe.shuffle_window))  # type: ignore[arg-type]
    next(loader)
    cost = Cost(time_of_process() - cpu, peak_megabytes() - memory)
    loader.close()
    return cost


def _state(arm: Arm, window: int) -> dict[str, object]:
    """The state of a run that has come to the window of a document, as a checkpoint holds it."""
    index, rest = divmod(arm.document, window * arm.streams)
    cursor = {"state": {"file": 0, "before": 0}, "example": arm.document - rest, "row": 0}
    place = {"epoch": 0, "window": index, "cursor": cursor, "document": 0, "offset": 0}
    return {str(stream): {"rows": 0, "sources": [place]} for stream in range(arm.streams)}


def time_of_process() -> float:
    """CPU seconds of this process, with all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_megabytes() -> float:
    """The largest resident memory so far, without what the parent had when it started this process."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux tells it"
    return int(found[1]) / 1024


def find_all(path: Path) -> None:
    """Do what an earlier start has done: unpack the file, and find all its rows."""
    if path.suffix == ".gz":
        make_copy(str(path))
    found = indexed_files(share_of(open_source(Source(path=str(path)), training=True), 0, 1).dataset)
    if found is not None:
        found.known(0, 1 << 62)


def in_a_process(path: Path, arm: Arm, cache: Path, *more: str) -> Cost:
    """The cost of an arm, measured in a process of its own."""
    arguments = json.dumps([str(path), *astuple(arm)])
    environment = {**os.environ, "SHARDYARD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *more, "--arm", arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return Cost(*json.loads(done.stdout))


def first_batches(folder: Path, form: str, megabytes: int) -> Iterator[tuple[str, Arm, Cost]]:
    """The first batch, by streams and ways of reading."""
    path = write(folder, form, megabytes, LONG)
    for indexed, order in WAYS:
        for streams in STREAMS:
            unpacked = form.endswith(".gz") and indexed
            arm = Arm(indexed, streams, order, unpacked=unpacked)
            # A cache of its own, so that the index is built in each measurement; a compressed file has its copy.
            cache = Path(tempfile.mkdtemp(dir=folder))
            yield "first batch", arm, in_a_process(path, arm, cache, *(["--find"] if unpacked else []))
    path.unlink()


def resumed(folder: Path, form: str, deep: int) -> Iterator[tuple[str, Arm, Cost]]:
    """A run that continues early and deep in a file, the rows of which an earlier start has found."""
    path = write(folder, form, -(-(deep + 100_000) * SHORT * 13 // 10 // 1_000_000), SHORT)
    for indexed, order in WAYS:
        for document in (10, deep):
            arm = Arm(indexed, 1, order, document, unpacked=indexed)
            in_a_process(path, arm, folder / "kept", "--find")
            yield "resume", arm, in_a_process(path, arm, folder / "kept")
    path.unlink()


def requests(folder: Path, form: str, megabytes: int) -> Iterator[tuple[int, int]]:
    """The number of streams, and of requests up to the first batch."""
    path = write(folder, form, megabytes, LONG)
    for streams in STREAMS:
        with serving({path.name: path.read_bytes()}) as server:
            recipe = data([Source(path=server.url(path.name))], sequence_length=1024, shuffle_window=16, prefetch=1)
            batches(recipe, 1, streams=streams, global_batch=GLOBAL_BATCH)
            yield streams, server.met["good"]
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--deep", type=int, default=DEEP, help="document at which a run is resumed")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--find", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        path, *arm = json.loads(options.arm)
        if options.find:
            find_all(Path(path))
        cost = measure(Path(path), Arm(*arm))
        sys.stdout.write(json.dumps([cost.cpu_seconds, cost.megabytes]))
        return
    table = "{:10} {:12} {:9} {:>7} {:>9} {:>7} {:>6}\n"
    sys.stdout.write(table.format("format", "", "read", "streams", "document", "CPU s", "MB"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form in options.formats:
            measured = (first_batches(folder, form, options.megabytes), resumed(folder, form, options.deep))
            for title, one, cost in (row for part in measured for row in part):
                numbers = (one.how, one.streams, one.document, f"{cost.cpu_seconds:.2f}", f"{cost.megabytes:.0f}")
                sys.stdout.write(table.format(form, title, *numbers))
                sys.stdout.flush()
            for streams, count in requests(folder, form, min(options.megabytes, 10)):
                sys.stdout.write(f"{form:10} requests     {streams:>17} {count:>9}\n")


if __name__ == "__main__":
    main()
