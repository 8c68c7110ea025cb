"""Peak memory of ranks that train, without and with offloading of optimizer states, beside the plan's count.

Trains a GPT-2 of about `--parameters` weights in bf16 at ZeRO stage 3. Memory is anonymous and locked memory of a rank,
without the pages of files that the kernel keeps, over that of the process with everything imported. The optimizer takes
the same memory on a CPU wherever it is: what `cpu` moves is on a GPU otherwise.

    python tests/benchmarks/offload_memory.py --parameters 2e8 --ranks 2
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

GIB = 2**30
PLACES: dict[str, dict[str, Any]] = {
    "none": {},
    "cpu": {"offload_optimizer": "cpu"},
    "nvme": {"offload_optimizer": "nvme"},
}


@dataclass(frozen=True)
class Measured:
    """Bytes over the imported process, seconds of a step, bytes of the rank's files, and the last loss.

    peak: of the whole run, with its start. steps: from the end of the first step to that of the last.
    """

    peak: int
    steps: int
    step_seconds: float
    files: int
    loss: float


def anonymous_bytes() -> int:
    """Memory of this process that is in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measure(rank: Rank, job: Job, disk: str) -> Measured:
    """Train one job and watch this rank's memory."""
    gc.collect()
    before, peaks, files, done = anonymous_bytes(), [0], [0], threading.Event()
    in_steps: list[int] = [0]
    training = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(anonymous_bytes())
            if training.is_set():
                in_steps.append(peaks[-1])
            # The optimizer renames and removes its files meanwhile.
            with contextlib.suppress(FileNotFoundError):
                files.append(sum(path.stat().st_size for path in Path(disk).rglob("*.swp")))

    def after(step: int, _: dict[str, float]) -> None:
        if step == 1:
            training.set()
        if step == job.plan.steps:
            training.clear()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    run_rank(job, rank, on_step=after)
    done.set()
    watcher.join()
    lines = read_metrics(job.folder.metrics)
    seconds = sorted(line["perf/step_seconds"] for line in lines if "perf/step_seconds" in line)
    middle = seconds[len(seconds) // 2] if seconds else float("nan")
    return Measured(
        max(peaks) - before, max(in_steps) - before, middle, max(files) // rank.world_size, lines[-1]["train/loss"]
    )


def make_job(folder: Path, parameters: float, ranks: int, zero: dict[str, Any], sub_group: int) -> Job:
    """A run of few steps."""
    if zero.get("offload_optimizer") == "nvme":
        zero = zero | {"nvme_path": str(folder / "disk"), "sub_group_size": sub_group}
    width = 1024
    layers = max(2, round(parameters / (12 * width**2)))
    recipe = tiny_recipe(
        write_corpus(folder, 100),
        model={"config": {"n_layer": layers, "n_head": 16, "n_embd": width, "n_positions": 64}},
        train={"precision": "bf16", "steps": 4, "micro_batch": 1, "global_batch": ranks},
        data={"sequence_length": 32, "streams": ranks, "shuffle_window": 16},
        schedule={"name": "constant", "warmup": 0},
        zero={"stage": 3, "bucket_bytes": 8_000_000, **zero},
        checkpoint={"every": 4},
        evaluate={"every": 4, "rows": 2},
        cluster={"workers": ranks},
    )
    return tiny_job(recipe, folder / "runs", world_size=ranks)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=2e8)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--sub-group", type=float, default=5e6)
    parser.add_argument("--places", nargs="+", default=list(PLACES))
    parser.add_argument("--dir", type=Path, default=None, help="a folder on a local disk")
    given = parser.parse_args()
    out = sys.stdout.write
    out("| optimizer states | peak a rank | of steps | counted | files a rank | counted | step | loss |\n")
    out("|---|---|---|---|---|---|---|---|\n")
    for place in given.places:
        with tempfile.TemporaryDirectory(dir=given.dir) as temporary:
            folder = Path(temporary)
            job = make_job(folder, given.parameters, given.ranks, PLACES[place], int(given.sub_group))
            memory = job.plan.memory
            counted = memory.device_bytes + memory.offloaded_bytes
            began = time.monotonic()
            found = run_ranks(given.ranks, measure, job, str(folder / "disk"))
            took = time.monotonic() - began
            peak, files = max(one.peak for one in found), max(one.files for one in found)
            sizes = (peak, max(one.steps for one in found), counted, files, memory.swapped_bytes)
            cells = " | ".join(f"{size / GIB:.2f} GiB" for size in sizes)
            out(f"| {place} | {cells} | {found[0].step_seconds:.1f} s | {found[0].loss:.4f} |\n")
            sys.stderr.write(f"{place}: {took:.0f} s, {memory}\n")


if __name__ == "__main__":
    main()
