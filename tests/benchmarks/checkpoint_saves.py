"""What a checkpoint beside training costs: its pause, the steps that it overlaps, and its way to the disk.

One run measures in turns: ten steps that settle it, ten with a checkpoint after the first one, ten without, a copy of
the same bytes in memory, and the best rate at which the same disk takes as many. The disk's best rate is that of direct
writes of 16 MiB, all of other memory, into space that was taken before, synced, by that of one, two or four threads
with the best median: a disk takes the same bytes at another rate in another place, and a virtual one takes the same
16 MiB from a cache. The copy is the best of three, by torch and by memcpy.

    python tests/benchmarks/checkpoint_saves.py --width 512 --turns 6
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from shardyard.engine.checkpoint.checkpoint import Checkpointer
from shardyard.engine.hooks.checkpoints import CheckpointHook
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.events import CheckpointSaved, read_events
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

EVERY = 10
# Parts of a turn, each of so many steps.
PARTS = 3
SETTLING, SAVING = 0, 1
BLOCK_BYTES = 16 << 20
THREADS = (1, 2, 4)


@dataclass
class Measured:
    """Seconds of each turn, of one rank."""

    with_save: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    disk: dict[int, list[float]] = field(default_factory=lambda: {threads: [] for threads in THREADS})

    @property
    def best_disk(self) -> list[float]:
        """Of the number of threads with the best median."""
        return min(self.disk.values(), key=statistics.median)


def _disk_seconds(path: Path, contents: mmap.mmap, threads: int) -> float:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
    view = memoryview(contents)
    started = time.perf_counter()
    try:
        os.posix_fallocate(descriptor, 0, len(view))
        with ThreadPoolExecutor(threads) as pool:
            places = range(0, len(view), BLOCK_BYTES)
            list(pool.map(lambda at: os.pwrite(descriptor, view[at : at + BLOCK_BYTES], at), places))
        os.fsync(descriptor)
        return time.perf_counter() - started
    finally:
        os.close(descriptor)
        path.unlink()


def train(rank: Rank, job: Any, turns: int, scratch: Path) -> Measured:
    """Take turns; the first checkpoint, whose memory is fresh, comes before them."""
    found, state = Measured(), {"begun": 0.0}
    begun = Checkpointer.begin
    checkpointers: list[Checkpointer] = []

    def begin(checkpointer: Checkpointer, *arguments: Any) -> None:
        checkpointers[:] = [checkpointer]
        begun(checkpointer, *arguments)

    def due(hook: CheckpointHook, step: int, last: int) -> bool:
        return (step - 1) // EVERY % PARTS == SAVING and step % EVERY == 1

    Checkpointer.begin = begin  # type: ignore[method-assign]
    CheckpointHook.due = due  # type: ignore[method-assign]

    def on_step(step: int, _: dict[str, float]) -> None:
        # Called after a step and before its checkpoint: a turn is from the end of one step to that of the tenth after.
        if step % EVERY:
            return
        turn, part = divmod((step - 1) // EVERY, PARTS)
        seconds = time.perf_counter() - state["begun"]
        if turn and part != SETTLING:
            (found.with_save if part == SAVING else found.without).append(seconds)
        _finish(checkpointers)
        if turn and part == PARTS - 1:
            size = job.folder.checkpoints
            shard = max(one.stat().st_size for one in size.glob(f"step-*/rank-{rank.rank:05d}.safetensors"))
            found.copies.append(_copy_seconds(shard))
            if rank.is_first:
                total = sum(one.stat().st_size for one in sorted(size.glob("step-*"))[-1].iterdir())
                contents = mmap.mmap(-1, -(-total // BLOCK_BYTES) * BLOCK_BYTES)
                for _ in range(len(contents) // BLOCK_BYTES):
                    contents.write(os.urandom(1 << 20) * (BLOCK_BYTES >> 20))
                for threads, taken in found.disk.items():
                    taken.append(_disk_seconds(scratch / "disk", contents, threads) * total / len(contents))
            torch.distributed.barrier()
        state["begun"] = time.perf_counter()

    run_rank(job, rank, on_step)
    return found


def _finish(checkpointers: list[Checkpointer]) -> None:
    """Until what is being written is written, which the next step reports."""
    while checkpointers and checkpointers[0].is_writing and not checkpointers[0].written:
        time.sleep(0.01)


def _copy_seconds(size_bytes: int) -> float:
    source, target = torch.ones(size_bytes, dtype=torch.uint8), torch.ones(size_bytes, dtype=torch.uint8)
    seconds = []
    for _ in range(3):
        for copy in (lambda: target.copy_(source), lambda: numpy.copyto(target.numpy(), source.numpy())):
            started = time.perf_counter()
            copy()
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> int:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="of the model of 8 layers")
    parser.add_argument("--rows", type=int, default=16, help="of a rank and step, of 128 tokens each")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--foreground", action="store_true", help="write between steps")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        scratch = Path(folder)
        corpus = write_corpus(scratch, documents=4000)
        model = {"config": {"n_layer": 8, "n_head": 8, "n_embd": options.width, "n_positions": 128}}
        recipe = tiny_recipe(
            corpus,
            model=model,
            data={"sequence_length": 128, "train": [{"path": str(corpus), "holdout": 0.01}]},
            train={
                "steps": PARTS * EVERY * (options.turns + 1),
                "global_batch": options.rows * options.ranks,
                "precision": options.precision,
            },
            zero={"stage": options.stage},
            checkpoint={"every": 100_000, "keep": 1, "background": not options.foreground},
            evaluate={"every": 100_000},
            cluster={"workers": options.ranks, "cpus_per_worker": options.threads},
        )
        job = tiny_job(recipe, scratch / "runs", world_size=options.ranks)
        ranks = run_ranks(options.ranks, train, job, options.turns, scratch)
        saves = [one for one in read_events(job.folder.events) if isinstance(one, CheckpointSaved)]
    _report(options, ranks, saves[: options.turns + 1])
    return 0


def _report(options: argparse.Namespace, ranks: list[Measured], saves: list[CheckpointSaved]) -> None:
    first, size = ranks[0], saves[-1].bytes or 0
    middle = statistics.median
    copied = middle([max(turn) for turn in zip(*(one.copies for one in ranks), strict=True)])
    pauses = [one.paused_seconds or 0.0 for one in saves[1:]]
    written = [one.seconds or 0.0 for one in saves[1:]]
    steps = [ours / theirs for ours, theirs in zip(first.with_save, first.without, strict=False)]
    beside = [one - pause for one, pause in zip(written, pauses, strict=True)]
    disk = middle(first.best_disk)
    lines = [
        (
            f"{options.ranks} rank(s), {options.threads} thread(s) each, stage {options.stage}, {options.precision}, "
            f"{size / 1e6:.0f} MB a checkpoint, {len(steps)} turns"
        ),
        f"pause                    {middle(pauses):8.3f} s   first {saves[0].paused_seconds or 0:.3f} s",
        f"copy of the same bytes   {copied:8.3f} s   pause / copy {middle(pauses) / copied:.2f}",
        (
            f"ten steps with, without  {middle(first.with_save):8.3f} s   {middle(first.without):.3f} s   "
            f"ratio {middle(steps):.3f} ({min(steps):.3f} to {max(steps):.3f})"
        ),
        f"begin to commit          {middle(written):8.3f} s   {size / middle(written) / 1e9:.2f} GB/s",
        (
            f"of it beside training    {middle(beside):8.3f} s   {size / middle(beside) / 1e9:.2f} GB/s   "
            f"({min(beside):.3f} to {max(beside):.3f} s)"
        ),
        (
            f"best of the disk         {disk:8.3f} s   {size / disk / 1e9:.2f} GB/s   "
            f"({min(first.best_disk):.3f} to {max(first.best_disk):.3f} s)   ratio {disk / middle(beside):.2f}"
        ),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
