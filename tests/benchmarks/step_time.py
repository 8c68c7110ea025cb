"""Step time of the platform with everything on, over a bare DeepSpeed loop; run by `make bench`.

Both arms train the same model from the same weights on the same batches with the same threads, ranks and DeepSpeed
configuration, and must give the same losses. The platform reads, tokenises and packs its data while it trains, writes
the run folder and mirrors it to W&B (offline); the bare loop finds its batches in memory and does nothing but train.
Arms take turns in processes of their own, and the figure is the ratio of the medians over all turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from shardyard.data.formats import Context
from shardyard.data.loader import TrainLoader
from shardyard.data.tokenizer import load_tokenizer, vocabulary_size
from shardyard.engine.deepspeed_engine import start_engine
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.models.build import architecture_config, special_token_ids
from shardyard.objectives.causal import causal_lm_loss
from shardyard.recipe.load import load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.runfolder import read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job

WARM_UP_STEPS = 5


def platform_arm(rank: Rank, job: Job) -> dict[str, list[float]]:
    """A real run; step times are the differences of its records' times, so nothing between steps is left out."""
    run_rank(job, rank)
    lines = read_metrics(job.folder.metrics)
    times = [line["time"] for line in lines]
    return {
        "seconds": [after - before for before, after in pairwise(times)],
        "losses": [line["train/loss"] for line in lines],
        "waits": [line["perf/data_wait_seconds"] for line in lines],
    }


def bare_arm(rank: Rank, job: Job) -> dict[str, list[float]]:
    """DeepSpeed alone: forward, backward, step."""
    recipe, plan = job.recipe, job.plan
    torch.set_num_threads(recipe.cluster.cpus_per_worker)
    tokenizer = load_tokenizer(recipe.tokenizer)
    config = architecture_config(
        recipe.model, vocabulary=vocabulary_size(tokenizer), special_tokens=special_token_ids(tokenizer)
    )
    engine = start_engine(recipe, plan, config, rank)
    batches = _batches(recipe, plan.lanes, plan.steps, tokenizer, rank)
    rate = recipe.optimizer.lr
    seconds, losses = [], []
    before = time.perf_counter()
    for input_ids, labels, position_ids in batches:
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for first in range(0, len(input_ids), plan.micro_batch):
            part = slice(first, first + plan.micro_batch)
            loss = causal_lm_loss(engine, input_ids[part], labels[part], position_ids[part])
            # Without ignored labels every row has the same number of targets, so this is the mean of the global batch.
            engine.backward(loss / (len(input_ids) * labels.size(1)), scale_wrt_gas=False)
            engine.step()
            total += float(loss.detach())
        now = time.perf_counter()
        seconds.append(now - before)
        losses.append(total / labels.numel())
        before = now
    return {"seconds": seconds[1:], "losses": losses, "waits": []}


def _batches(recipe: Recipe, lanes: int, steps: int, tokenizer: Any, rank: Rank) -> list[tuple[torch.Tensor, ...]]:
    loader = TrainLoader(
        Context(recipe.data, tokenizer),
        global_batch=recipe.train.global_batch,
        lanes=lanes,
        seed=recipe.train.seed,
        rank=rank.rank,
        world_size=rank.world_size,
    )
    read = [next(loader) for _ in range(steps)]
    loader.close()
    return [tuple(t.to(rank.device) for t in (b["input_ids"], b["labels"], b["position_ids"])) for b in read]


def _recipe(steps: int, workers: int) -> Recipe:
    quiet = [f"train.steps={steps}", f"evaluate.every={steps}", f"checkpoint.every={steps}", "sample.prompts=[]"]
    constant = [
        "schedule.name=constant",
        "schedule.warmup=0",
        "schedule.decay_fraction=",
        "tracking.wandb.mode=offline",
    ]
    return load_recipe("gpt/quickstart", [*quiet, *constant, f"cluster.workers={workers}"]).recipe


def _check_losses(platform: list[float], bare_by_rank: list[list[float]]) -> float:
    """Largest relative difference of the losses; the bare ranks' are averaged as the platform's are."""
    bare = [statistics.fmean(values) for values in zip(*bare_by_rank, strict=True)]
    return max(abs(a - b) / b for a, b in zip(platform, bare, strict=True))


def main() -> int:
    """Run all turns and print the figures; the exit code is 1 when the losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=4, help="turns of each arm")
    parser.add_argument("--steps", type=int, default=45, help="steps of each turn")
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # Deprecations within DeepSpeed, told by every process, would drown the figures.
    os.environ["PYTHONWARNINGS"] = "ignore"
    recipe = _recipe(options.steps, options.workers)
    seconds: dict[str, list[float]] = {"platform": [], "bare": []}
    difference, waits = 0.0, []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(options.turns):
            job = tiny_job(recipe, Path(scratch) / str(turn), world_size=options.workers)
            ours = run_ranks(options.workers, platform_arm, job)
            theirs = run_ranks(options.workers, bare_arm, job)
            seconds["platform"] += ours[0]["seconds"][WARM_UP_STEPS:-1]
            seconds["bare"] += theirs[0]["seconds"][WARM_UP_STEPS:-1]
            waits += ours[0]["waits"][WARM_UP_STEPS:]
            difference = max(difference, _check_losses(ours[0]["losses"], [arm["losses"] for arm in theirs]))
    figures = {
        "ratio": statistics.median(seconds["platform"]) / statistics.median(seconds["bare"]),
        "platform_median_ms": 1000 * statistics.median(seconds["platform"]),
        "bare_median_ms": 1000 * statistics.median(seconds["bare"]),
        "platform_p90_ms": 1000 * statistics.quantiles(seconds["platform"], n=10)[-1],
        "bare_p90_ms": 1000 * statistics.quantiles(seconds["bare"], n=10)[-1],
        "data_wait_median_ms": 1000 * statistics.median(waits),
        "steps_per_arm": len(seconds["platform"]),
        "largest_relative_loss_difference": difference,
    }
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.write("".join(f"{name:34} {value:10.4g}\n" for name, value in figures.items()))
    return 0 if difference < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
