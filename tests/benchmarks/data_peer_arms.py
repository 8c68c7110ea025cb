"""One data loader on the shards of `data_peers.py`: its speed, and the rows that it gives from the start or a state.

A process of its own, in the environment that has the loader. Rows are token ids [T], made by the same tokenizer.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import pickle
import random
import resource
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LENGTH, BATCH, BUFFER, SEED = 512, 64, 256, 1
WEIGHTS = {"code": 0.7, "models": 0.3}
ENCODED_TOGETHER = 256

Row = npt.NDArray[np.integer[Any]]
# Rows in the order of this rank, a function that gives the state after the rows so far, and one that ends.
Opened = tuple[Iterator[Row], Callable[[], object]]


@dataclass(frozen=True)
class Asked:
    """What an arm is to do: `state` is that of an earlier process, by rank."""

    folder: Path
    rank: int
    world: int
    state: Any

    @property
    def rows(self) -> int:
        """Rows of this rank in a global batch."""
        return BATCH // self.world


def tokenizer(folder: Path) -> Any:
    """The tokenizer of all arms but Shardyard's, which reads the same file."""
    return importlib.import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))


class Packer:
    """Texts concatenated and cut into rows, as fast as the tokenizer: `taken` texts so far, `rest` not yet in a row."""

    def __init__(self, texts: Iterable[str], folder: Path, taken: int = 0, rest: Row | None = None) -> None:
        self._texts, self._tokenizer = iter(texts), tokenizer(folder)
        self.taken = taken
        self.rest: Row = np.empty(0, np.int32) if rest is None else rest

    def __iter__(self) -> Iterator[Row]:
        ready = deque[Row]()
        while True:
            while len(self.rest) >= LENGTH:
                row, self.rest = self.rest[:LENGTH], self.rest[LENGTH:]
                yield row
            texts = list(itertools.islice(self._texts, ENCODED_TOGETHER))
            if not texts:
                return
            self.taken += len(texts)
            encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            self.rest = np.concatenate([self.rest, *(np.array([0, *one.ids], np.int32) for one in encoded)])
            ready.clear()


def shardyard(asked: Asked, **fields: Any) -> Opened:
    """The loader of a run, with its defaults: one thread a rank that reads ahead."""
    from shardyard.data.formats import FormatInputs
    from shardyard.data.stream.loader import TrainLoader
    from shardyard.data.tokenizers.tokenizer import load_tokenizer
    from shardyard.recipe.schema import Data, Source

    train = [Source(path=str(asked.folder / f"{name}-*.parquet"), weight=weight) for name, weight in WEIGHTS.items()]
    data = Data(sequence_length=LENGTH, shuffle_window=BUFFER, train=train, order=2, **fields)
    inputs = FormatInputs(data, load_tokenizer(str(asked.folder / "tokenizer")))
    loader = TrainLoader(inputs, global_batch=BATCH, streams=BATCH, seed=SEED, dp_rank=asked.rank, dp_size=asked.world)
    if asked.state is not None:
        loader.load_state({stream: state for part in asked.state for stream, state in part.items()})
    last: dict[str, Any] = {}

    def rows() -> Iterator[Row]:
        for batch in loader:
            last["state"] = batch.state
            yield from batch["input_ids"].numpy()

    return rows(), lambda: last["state"]


def best_fit(asked: Asked) -> Opened:
    """Shardyard with whole documents."""
    return shardyard(asked, packing="best_fit")


def datasets(asked: Asked) -> Opened:
    """`load_dataset` in streaming mode, shuffle, interleave_datasets and a batched map, by its documentation."""
    library = importlib.import_module("datasets")
    encoder = tokenizer(asked.folder)

    def pack(columns: dict[str, list[str]]) -> dict[str, Any]:
        encoded = encoder.encode_batch_fast(columns["text"], add_special_tokens=False)
        joined = np.concatenate([np.array([0, *one.ids], np.int32) for one in encoded])
        return {"row": list(joined[: len(joined) // LENGTH * LENGTH].reshape(-1, LENGTH))}

    sources = [
        library.load_dataset(
            "parquet", data_files=str(asked.folder / f"{name}-*.parquet"), split="train", streaming=True
        ).shuffle(seed=SEED, buffer_size=BUFFER)
        for name in WEIGHTS
    ]
    mixed = library.interleave_datasets(
        sources, probabilities=list(WEIGHTS.values()), seed=SEED, stopping_strategy="all_exhausted"
    )
    mapped = mixed.map(pack, batched=True, batch_size=ENCODED_TOGETHER, remove_columns=["text"]).with_format("numpy")
    if asked.world > 1:
        mapped = importlib.import_module("datasets.distributed").split_dataset_by_node(mapped, asked.rank, asked.world)
    if asked.state is not None:
        mapped.load_state_dict(asked.state[asked.rank % len(asked.state)])
    return (example["row"] for example in mapped), mapped.state_dict


def webdataset(asked: Asked) -> Opened:
    """WebDataset's pipeline and RandomMix. It has no state: a run goes on by reading again what has been read."""
    library = importlib.import_module("webdataset")
    random.seed(SEED)

    def texts(name: str) -> Any:
        urls = sorted(map(str, asked.folder.glob(f"{name}-*.tar")))[asked.rank :: asked.world]
        own = library.WebDataset(urls, shardshuffle=len(urls), seed=SEED, nodesplitter=None, empty_check=False)
        return own.shuffle(BUFFER, rng=random.Random(SEED)).map(lambda sample: sample["txt"].decode()).repeat()

    mixed = library.RandomMix([texts(name) for name in WEIGHTS], probs=list(WEIGHTS.values()))
    rows, count = iter(Packer(mixed, asked.folder)), 0
    if asked.state is not None:
        count = sum(asked.state) // asked.world
        for _ in range(count):
            next(rows)

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    return counted(), lambda: count


def mosaic_library() -> Any:
    """mosaicml-streaming, whose first import asks for torchvision for its pictures: there is no build without CUDA."""
    if "streaming" in sys.modules:
        return sys.modules["streaming"]
    importlib.import_module("transformers")  # which looks for torchvision, too, and must not find it
    for name, has in (
        ("torchvision", ()),
        ("torchvision.datasets", ("VisionDataset",)),
        ("torchvision.transforms", ()),
        ("torchvision.transforms.functional", ("to_tensor",)),
    ):
        module = types.ModuleType(name)
        for attribute in has:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    return importlib.import_module("streaming")


def write_mds(folder: Path) -> None:
    """The texts of the .json files as MDS, a shard for each file as nearly as a limit of bytes makes it."""
    for source in WEIGHTS:
        shards = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{source}-*.json"))]
        limit = max(sum(len(text.encode()) + 8 for text in shard) for shard in shards) + 4096
        out = str(folder / f"{source}-mds")
        with mosaic_library().MDSWriter(out=out, columns={"text": "str"}, size_limit=limit) as writer:
            for text in (text for shard in shards for text in shard):
                writer.write({"text": text})


def mosaic(asked: Asked) -> Opened:
    """mosaicml-streaming's StreamingDataset of two streams; the tokens left of a batch of texts are kept, too."""
    library = mosaic_library()
    streams = [
        library.Stream(local=str(asked.folder / f"{name}-mds"), proportion=weight) for name, weight in WEIGHTS.items()
    ]
    dataset = library.StreamingDataset(
        streams=streams, shuffle=True, shuffle_seed=SEED, batch_size=BATCH // asked.world, num_canonical_nodes=2
    )
    taken, rest = 0, None
    if asked.state is not None:
        taken = sum(state[0] for state in asked.state)
        rest = asked.state[0][1] if len(asked.state) == asked.world else None
        dataset.load_state_dict(asked.state[0][2] | {"sample_in_epoch": taken})
    packer = Packer((sample["text"] for sample in dataset), asked.folder, taken, rest)
    return iter(packer), lambda: (packer.taken, packer.rest, dataset.state_dict(packer.taken, from_beginning=True))


ARMS: dict[str, Callable[[Asked], Opened]] = {
    "shardyard": shardyard,
    "best_fit": best_fit,
    "datasets": datasets,
    "webdataset": webdataset,
    "mosaic": mosaic,
}


# What takes time before an arm begins, and is not counted.
_OURS = ("torch", "transformers", "datasets", "pyarrow.parquet", "shardyard.data.stream.loader")
IMPORTED = {
    "shardyard": _OURS,
    "best_fit": _OURS,
    "datasets": ("torch", "datasets", "datasets.distributed", "tokenizers"),
    "webdataset": ("torch", "webdataset", "tokenizers"),
    "mosaic": ("torch", "transformers", "tokenizers"),
}


def cpu_seconds() -> float:
    """Of this process, with all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def digest(row: Row) -> str:
    """A row in a few letters."""
    return hashlib.blake2b(np.asarray(row, np.int64).tobytes(), digest_size=8).hexdigest()


def measure(name: str, asked: Asked, batches: int, compared: int, keep: Path | None) -> dict[str, Any]:
    """Seconds up to the first batch and of those after it; the digests of the last `compared` of `batches` batches.

    `keep`: where the state before these is written.
    """
    for module in IMPORTED[name]:
        importlib.import_module(module)
    if name == "mosaic":
        mosaic_library()
    began, cpu = time.perf_counter(), cpu_seconds()
    rows, state = ARMS[name](asked)
    own = list(itertools.islice(rows, asked.rows))
    first, first_cpu = time.perf_counter() - began, cpu_seconds() - cpu
    began, cpu = time.perf_counter(), cpu_seconds()
    kept = [digest(row) for row in own] if compared == batches else []
    for batch in range(2, batches + 1):
        if keep is not None and batch == batches - compared + 1:
            keep.write_bytes(pickle.dumps(state()))
        own = list(itertools.islice(rows, asked.rows))
        if batch > batches - compared:
            kept += [digest(row) for row in own]
    return {
        "first": first,
        "first_cpu": first_cpu,
        "seconds": time.perf_counter() - began,
        "cpu": cpu_seconds() - cpu,
        "tokens": (batches - 1) * asked.rows * LENGTH,
        "rows": kept,
    }


def main() -> None:
    """Print what was measured as JSON."""
    given = json.loads(sys.argv[1])
    if given["arm"] == "write-mds":
        write_mds(Path(given["folder"]))
        return
    state = [pickle.loads(Path(path).read_bytes()) for path in given["states"]] or None
    asked = Asked(Path(given["folder"]), given["rank"], given["world"], state)
    keep = Path(given["keep"]) if given["keep"] else None
    sys.stdout.write(
        "RESULT " + json.dumps(measure(given["arm"], asked, given["batches"], given["compared"], keep)) + "\n"
    )
    sys.stdout.flush()
    os._exit(0)  # threads that read ahead would be waited for


if __name__ == "__main__":
    main()
