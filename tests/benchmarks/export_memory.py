"""Memory and time of leaving a run: final/ of ranks under ZeRO-3, and the export of a checkpoint by one process.

Memory is the most that a rank allocates beyond what it held before, which includes its share of the weights: anonymous
pages, because those of files that are mapped into memory, as a checkpoint's are, can be dropped at any time. It may be
one block: the larger of the largest layer and the largest weight outside of layers. Time is that of the slowest rank.
`whole` gathers all weights on rank 0 first, as exports did before ranks wrote together.

    python tests/benchmarks/export_memory.py --parameters 2e8 --ranks 1 2 4
    python tests/benchmarks/export_memory.py --parameters 1e9 --ranks 4 --precision fp32 --folder /mnt/runs
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors import safe_open

from shardyard.engine import run
from shardyard.engine.assemble import assemble
from shardyard.engine.checkpoint.checkpoint import TrainerState
from shardyard.engine.checkpoint.weights import consolidated_weights
from shardyard.engine.inference.load import export_checkpoint
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job
from shardyard.engine.world import Rank
from shardyard.recipe.schema import Recipe
from support.memory.ranks import block_bytes
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

LAYERS = 8
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Cost:
    """megabytes: allocated beyond what was there. seconds: of wall time."""

    megabytes: float
    seconds: float


def cost_of(action: Callable[[], object]) -> Cost:
    """The second of two times, without what the first imports; the peak is sampled each millisecond."""
    action()
    ctypes.CDLL(None).malloc_trim(0)  # What was freed does not count as held.
    before = peak = _anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    action()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return Cost((peak - before) / MEGABYTE, seconds)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def leave(rank: Rank, job: Job) -> dict[str, Cost]:
    """What one rank needs for each way of leaving."""
    session = assemble(job.recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    found = {"together": cost_of(lambda: run._export(session))}
    found["whole"] = cost_of(lambda: consolidated_weights(session.engine, session.mesh))
    session.checkpointer.save(TrainerState(step=1, tokens=0, hooks={}), session.loader.state())
    session.close()
    return found


def from_checkpoint(_: Rank, job: Job, folder: Path) -> dict[str, Cost]:
    """What one process needs to export a checkpoint, verified before."""
    return {"checkpoint": cost_of(lambda: export_checkpoint(job.folder, None, folder / "exported"))}


def sizes_in(folder: Path) -> dict[str, int]:
    """The bytes of each weight in a model's files."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    return found


def recipe_of(corpus: Path, parameters: float, ranks: int, precision: str) -> Recipe:
    """A decoder of about so many parameters. SGD keeps few states beside them."""
    width = max(64, round((parameters / (LAYERS * 12)) ** 0.5 / 64) * 64)
    config: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": round(width * 8 / 3 / 64) * 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 64,
    }
    return tiny_recipe(
        corpus,
        family="llama",
        model={"config": config},
        train={"steps": 1, "precision": precision, "micro_batch": 1, "global_batch": ranks},
        optimizer={"name": "sgd", "lr": 0.1},
        schedule={"warmup": 0},
        checkpoint={"every": 1, "shard_size": "100MB"},
        zero={"stage": 3},
        cluster={"workers": ranks},
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=2e8)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, help="where runs are written; default: a temporary folder")
    given = parser.parse_args()
    say = sys.stdout.write
    say("| ranks | model MB | way | block MB | MB a rank | seconds |\n|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        corpus = write_corpus(folder)
        for ranks in given.ranks:
            job = tiny_job(
                recipe_of(corpus, given.parameters, ranks, given.precision), folder / str(ranks), world_size=ranks
            )
            found = run_ranks(ranks, leave, job)
            found += run_ranks(1, from_checkpoint, job, folder / str(ranks))
            size = sum(path.stat().st_size for path in job.folder.final.glob("*.safetensors")) / MEGABYTE
            block = block_bytes(sizes_in(job.folder.final)) / MEGABYTE
            for way in ("together", "whole", "checkpoint"):
                costs = [rank[way] for rank in found if way in rank]
                most, slowest = max(cost.megabytes for cost in costs), max(cost.seconds for cost in costs)
                say(f"| {ranks} | {size:.0f} | {way} | {block:.0f} | {most:.0f} | {slowest:.1f} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
