"""The same shards read by Shardyard, `datasets`, WebDataset and mosaicml-streaming: speed, start, resuming, exactness.

    python tests/benchmarks/data_peers.py --venv mosaic=mosaic-venv --venv webdataset=web-venv

A peer that this environment lacks needs one of its own: webdataset, and mosaicml-streaming with older transformers and
numpy (`pip install --no-deps mosaicml-streaming`, and what it needs but torchvision).

Two sources of Python files, 70 % and 30 % of the mixture, are concatenated, with a shuffle buffer of 256 documents, to
rows of 512 tokens of one BPE tokenizer, 64 in a batch. Shardyard and `datasets` read
Parquet, the others their own format with the same documents, shard by shard. Every arm is one process with one Python
thread of its own and the threads of the tokenizer. A run is stopped before its last batches and continued by a new
process, then by two ranks; rows are compared with those of the run that went on, in order or as sets of each batch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ARMS = ("shardyard", "best_fit", "datasets", "webdataset", "mosaic")
SHARDS, BATCH = 8, 64
COMPARED = 3
SCRIPT = str(Path(__file__).with_name("data_peer_arms.py"))


def documents(root: Path, megabytes: float, seed: int) -> list[str]:
    """Pieces of the Python files below a folder, of log-normal lengths."""
    generator = random.Random(seed)
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.relative_to(root).parts)
    found, size = [], 0
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        while text and size < megabytes * 1e6:
            length = max(40, int(generator.lognormvariate(7, 1)))
            found.append(text[:length])
            size, text = size + len(found[-1]), text[length:]
    generator.shuffle(found)
    return found


def write(folder: Path, megabytes: float) -> None:
    """Two sources as Parquet and tar, and a tokenizer; the texts for MDS, which its library writes, as JSON."""
    import transformers

    roots = {"code": Path(sysconfig.get_paths()["stdlib"]), "models": Path(transformers.__file__).parent}
    everything = []
    for seed, (name, root) in enumerate(roots.items()):
        texts = documents(root, megabytes, seed)
        everything += texts[:: max(1, len(texts) // 1000)]
        for shard in range(SHARDS):
            own = texts[shard::SHARDS]
            where = folder / f"{name}-{shard}"
            pq.write_table(pa.table({"text": own}), where.with_suffix(".parquet"), row_group_size=len(own) // 8 + 1)
            where.with_suffix(".json").write_text(json.dumps(own))
            with tarfile.open(where.with_suffix(".tar"), "w") as tar:
                for number, text in enumerate(own):
                    content = text.encode()
                    info = tarfile.TarInfo(f"{number:06d}.txt")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(everything, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(str(folder / "tokenizer"))


@dataclass(frozen=True)
class Bench:
    """Where the shards are, which Python runs an arm, and how many batches a run has."""

    folder: Path
    pythons: dict[str, str]
    batches: int

    def run(self, arm: str, *, ranks: int = 1, states: Sequence[Path] = (), keep: bool = False) -> list[dict[str, Any]]:
        """The result of each rank; they run side by side."""
        running = [self._start(arm, rank, ranks, states, keep=keep) for rank in range(ranks)]
        results = []
        for process in running:
            out, err = process.communicate(timeout=300)
            line = next((line for line in out.splitlines() if line.startswith("RESULT ")), None)
            if line is None:
                raise RuntimeError(f"{arm}: {err.strip().splitlines()[-1:] or out[-300:]}")
            results.append(json.loads(line.removeprefix("RESULT ")))
        return results

    def state(self, arm: str) -> Path:
        """Where the state of an arm is kept."""
        return self.folder / f"{arm}.state"

    def _start(self, arm: str, rank: int, ranks: int, states: Sequence[Path], *, keep: bool) -> subprocess.Popen[str]:
        given = {
            "folder": str(self.folder), "arm": arm, "rank": rank, "world": ranks,
            "states": [str(one) for one in states],
            "batches": COMPARED if states else self.batches, "compared": COMPARED,
            "keep": str(self.state(arm)) if keep else "",
        }  # fmt: skip
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29611}
        environment = os.environ | {name: str(value) for name, value in world.items()}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SHARDYARD_CACHE": str(self.folder / "cache")}
        environment |= {"HF_HOME": str(self.folder / "hf")}
        return subprocess.Popen(
            [self.pythons.get(arm, sys.executable), SCRIPT, json.dumps(given)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def measure(bench: Bench, arm: str) -> str:
    """A line of the table."""
    (whole,) = bench.run(arm, keep=True)
    (resumed,) = bench.run(arm, states=[bench.state(arm)])
    try:
        two = bench.run(arm, ranks=2, states=[bench.state(arm)])
        other = same([row for pair in zip(two[0]["rows"], two[1]["rows"], strict=True) for row in pair], whole["rows"])
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        other = f"no: {error}"
    return (
        f"| {arm} | {whole['tokens'] / whole['seconds'] / 1e3:.0f} | {whole['tokens'] / whole['cpu'] / 1e3:.0f} "
        f"| {whole['first']:.2f} ({whole['first_cpu']:.2f}) | {resumed['first']:.2f} ({resumed['first_cpu']:.2f}) "
        f"| {same(resumed['rows'], whole['rows'])} | {other} |"
    )


def same(rows: Sequence[str], expected: Sequence[str]) -> str:
    """Whether rows are the expected ones, in order or by batch; else how many of them are among these."""
    if rows == expected:
        return "exact"
    cuts = range(0, len(expected), BATCH)
    if all(sorted(rows[cut : cut + BATCH]) == sorted(expected[cut : cut + BATCH]) for cut in cuts):
        return "exact but for the order in a batch"
    return f"no ({len(set(rows) & set(expected))} of {len(expected)} rows)"


def told(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--megabytes", type=float, default=12, help="of each source")
    options.add_argument("--batches", type=int, default=80)
    options.add_argument("--arms", default=",".join(ARMS))
    options.add_argument("--venv", action="append", default=[], help="ARM=FOLDER, the environment of an arm")
    given = options.parse_args()
    pythons = {arm: f"{folder}/bin/python" for arm, folder in (one.split("=") for one in given.venv)}
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), pythons, given.batches)
        write(bench.folder, given.megabytes)
        if "mosaic" in pythons:
            asked = json.dumps({"arm": "write-mds", "folder": name})
            subprocess.run([pythons["mosaic"], SCRIPT, asked], check=True, capture_output=True)
        told("| | k tokens/s | k tokens/CPU s | first batch, s (CPU s) | after a resume | resumed rows | two ranks |")
        told("|---|---|---|---|---|---|---|")
        for arm in given.arms.split(","):
            try:
                told(measure(bench, arm))
            except (RuntimeError, subprocess.SubprocessError) as error:
                told(f"| {arm} | {error} |")


if __name__ == "__main__":
    main()
