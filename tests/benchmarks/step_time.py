"""What the platform costs over DeepSpeed alone, by step and by whole run; run by `make bench`.

The opponent is `bare_deepspeed.py`, which is written from DeepSpeed's documentation and imports nothing of Shardyard.
Both train the same model from the same weights on the same batches with as many ranks and threads, and must give the
same losses. The platform reads, tokenises and packs its data while it trains, writes the run folder and mirrors it to
W&B (offline); the opponent does nothing but train. They run side by side and take turns of some steps (`turns.py`); the
figure is the ratio of their step times with its 95 % interval over pairs of turns.

Arms: `plain` (gpt/quickstart), `accumulation` (in four micro-batches), `stage3`, `20m` (19 million parameters, rows of
256 tokens), `25m` and `25m-fp32` (25 million parameters, rows of 512 tokens: also the share of the rate of products of
matrices that training reaches, measured between turns), `25m-compiled` (with `model.compile`, which the opponent has
not), and `whole`: what W&B, evaluations and checkpoints add to a
run from its first step to the exported model. `--trainer`: transformers' Trainer with DeepSpeed takes turns as a third
(`trainer_deepspeed.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parents[1]))

from turns import Turns, blocks, ratio

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.tokenizers.tokenizer import load_tokenizer, vocabulary_size
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.launch.run.world import bf16_here
from shardyard.models.build import architecture_config, construct, special_token_ids
from shardyard.models.initialise import initialise
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job

HERE = Path(__file__).parent
RECIPE = "gpt/quickstart"
CONSTANT = ("schedule.name=constant", "schedule.warmup=0", "schedule.decay_fraction=", "sample.prompts=[]")
LARGER = "{n_layer: 6, n_head: 8, n_embd: 512, n_positions: 256}"
LONG = (
    "model.config={n_layer: 8, n_head: 8, n_embd: 512, n_positions: 512}",
    *("data.sequence_length=512", "train.global_batch=8", "train.micro_batch=4", "optimizer.lr=1e-3"),
)
ARMS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "accumulation": ("train.micro_batch=2",),
    "stage3": ("zero.stage=3",),
    "20m": (f"model.config={LARGER}", "train.global_batch=4", "optimizer.lr=1e-3"),
    "25m": LONG,
    "25m-fp32": (*LONG, "train.precision=fp32"),
    "25m-compiled": (*LONG, "model.compile=true"),
}
# Whether this CPU has units for bf16; where it has not, steps take several times as long.
FAST = bool(bf16_here(gpu=False).units)
# What a run does beside training, and how often gpt/quickstart does it in its 500 steps.
TIMES = 5
WHOLE_STEPS = 40
# As glibc's mallopt(3) has it: keep what is freed. The platform's ranks ask for the same.
KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
FAREWELL_SECONDS = 60


def platform_arm(rank: Rank, job: Job, shared: Path, block: int, arms: tuple[str, ...]) -> dict[str, list[float]]:
    """A real run; step times are the differences of its records' times, so nothing between steps is left out."""
    turns = Turns(shared, "platform", rank.rank, block, arms)
    rates: list[float] = []

    def after(step: int, _: dict[str, float]) -> None:
        if step == 1:
            turns.begin()
        if step % block == 0:
            # All ranks come here together, as they compute together. It is after the step's record.
            rates.append(product_rate(job.plan.precision))
        turns.after(step)

    run_rank(job, rank, on_step=after)
    turns.end()
    lines = [line for line in read_metrics(job.folder.metrics) if "train/loss" in line]
    times = [line["time"] for line in lines]
    # The first step has no step before it. It is never counted.
    seconds = [0.0, *(after - before for before, after in pairwise(times))]
    return {"seconds": seconds, "losses": [line["train/loss"] for line in lines], "rates": rates}


def product_rate(precision: str) -> float:
    """FLOP/s of products of matrices with the threads of this process: the best of a few, each of two sizes."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for width in (512, 2048):
        left, right = torch.randn(width, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
        for _ in range(3 if width > 1024 else 20):
            began = time.perf_counter()
            left @ right
            best = max(best, 2 * width**3 / (time.perf_counter() - began))
    return best


def whole_arm(rank: Rank, job: Job) -> float:
    """Seconds from the first step's end to the end of the run."""
    run_rank(job, rank)
    return time.time() - float(read_metrics(job.folder.metrics)[0]["time"])


PROGRAMS = {"bare": "bare_deepspeed.py", "trainer": "trainer_deepspeed.py"}


@contextmanager
def opponent(name: str, shared: Path, job: Job) -> Iterator[None]:
    """An opponent beside what is in the `with` block; at its end the opponent has ended too.

    Raises:
        RuntimeError: it failed.
    """
    workers = job.plan.world.size
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    environment = {"OMP_NUM_THREADS": str(threads(job.recipe)), "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
    with (shared / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [*program, str(HERE / PROGRAMS[name]), str(shared)],
            env={**os.environ, **environment, **KEEP_FREED},
            stdout=log,
            stderr=log,
        )
        # When it fails, the others are not to wait for its turns.
        ended = shared / f"{name}-ended-0-0"
        watcher = threading.Thread(target=lambda: (process.wait(), ended.touch()), daemon=True)
        watcher.start()
        try:
            yield
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=FAREWELL_SECONDS)
        finally:
            process.terminate()
            process.wait()
    if not (shared / f"{name}-0.json").exists():
        raise RuntimeError(f"{PROGRAMS[name]} failed:\n{(shared / f'{name}.log').read_text()[-3000:]}")


def threads(recipe: Recipe) -> int:
    """Threads of a rank."""
    return recipe.train.threads or recipe.cluster.cpus_per_worker or 1


def write_task(shared: Path, job: Job, block: int, arms: tuple[str, ...]) -> None:
    """What the opponents are given: settings, initial weights, and the batches of each rank."""
    recipe, plan = job.recipe, job.plan
    tokenizer = load_tokenizer(recipe.tokenizer)
    config = architecture_config(
        recipe.model, vocabulary=vocabulary_size(tokenizer), special_tokens=special_token_ids(tokenizer)
    )
    torch.manual_seed(recipe.train.seed)
    model = construct(recipe.model, config, recipe.objective)
    initialise(model, seed=recipe.train.seed, gathered=lambda _: contextlib.nullcontext())
    model.save_pretrained(shared / "model")
    for rank in range(plan.mesh.data):
        torch.save(_batches(job, tokenizer, rank), shared / f"batches-{rank}.pt")
    optimizer = recipe.optimizer
    task = {
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "gradient_clipping": recipe.train.gradient_clipping,
        "stage": recipe.zero.stage,
        "precision": recipe.train.precision,
        # DeepSpeed's default for bf16 would be bf16: less to send, and other losses.
        "communication": recipe.zero.communication_data_type,
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "betas": list(optimizer.betas),
        "eps": optimizer.eps,
        "block": block,
        "arms": arms,
    }
    (shared / "task.json").write_text(json.dumps(task))


def _batches(job: Job, tokenizer: Any, rank: int) -> list[tuple[torch.Tensor, ...]]:
    recipe, plan = job.recipe, job.plan
    loader = TrainLoader(
        FormatInputs(recipe.data, tokenizer),
        global_batch=recipe.train.global_batch,
        streams=plan.streams,
        seed=recipe.train.seed,
        dp_rank=rank,
        dp_size=plan.mesh.data,
    )
    read = [next(loader) for _ in range(plan.steps)]
    loader.close()
    return [(b["input_ids"], b["labels"], b["position_ids"]) for b in read]


def recipe_of(overrides: tuple[str, ...], steps: int, workers: int, *, wandb: bool = True, times: int = 1) -> Recipe:
    """The recipe of an arm; `times` evaluations and checkpoints, the last of each at its end."""
    every = [f"evaluate.every={steps // times}", f"checkpoint.every={steps // times}"]
    mode = "offline" if wandb else "disabled"
    precision = "bf16" if FAST else "fp32"
    given = [f"train.steps={steps}", "train.minutes=", f"train.precision={precision}", f"cluster.workers={workers}"]
    given += [*every, f"tracking.wandb.mode={mode}"]
    return load_recipe(RECIPE, [*given, *CONSTANT, *overrides]).recipe


def compare(
    name: str, folder: Path, *, workers: int, pairs: int, block: int, warm_up: int, trainer: bool
) -> dict[str, Any]:
    """Figures of an arm: step times in milliseconds, their ratios, and how far losses are apart."""
    # In the first pair W&B still starts beside the training, which `whole` counts; it is one more than asked for.
    job = tiny_job(recipe_of(ARMS[name], (pairs + 1) * block, workers), folder / "runs", world_size=workers)
    shared = folder / name
    shared.mkdir(parents=True)
    others = ("bare", "trainer") if trainer else ("bare",)
    arms = ("platform", *others)
    write_task(shared, job, block, arms)
    with contextlib.ExitStack() as running:
        for other in others:
            running.enter_context(opponent(other, shared, job))
        try:
            ranks = run_ranks(workers, platform_arm, job, shared, block, arms)
        finally:
            (shared / "platform-ended-0-0").touch()
    ours = ranks[0]
    platform = blocks(ours["seconds"], block, warm_up)[1:]
    figures: dict[str, Any] = {"platform_ms": 1000 * statistics.median(platform), "pairs": len(platform)}
    for other in others:
        theirs = [json.loads((shared / f"{other}-{rank}.json").read_text()) for rank in range(workers)]
        found, low, high = ratio(platform, seconds := blocks(theirs[0]["seconds"], block, warm_up)[1:])
        figures |= {f"{other}_ms": 1000 * statistics.median(seconds)}
        prefix = "" if other == "bare" else f"{other}_"
        figures |= {f"{prefix}ratio": found, f"{prefix}low": low, f"{prefix}high": high}
        if other == "bare":
            # The losses of ranks are averaged as the platform's are.
            losses = [statistics.fmean(values) for values in zip(*(arm["losses"] for arm in theirs), strict=True)]
            apart = max(abs(a - b) / b for a, b in zip(ours["losses"], losses, strict=True))
            figures["loss_difference"] = apart
        else:
            # Its logs have four digits, of rank 0 or of all ranks as the version has it.
            figures["trainer_last_losses"] = [theirs[0]["losses"][-1], ours["losses"][-1]]
    rate = sum(statistics.median(one["rates"]) for one in ranks)
    flops = job.plan.flops_per_token * job.plan.tokens_per_step
    return figures | {
        "product_tflops": rate / 1e12,
        "mfu": flops / statistics.median(platform) / rate,
        "precision": job.plan.precision,
    }


def whole(folder: Path, *, workers: int, turns: int, steps: int) -> dict[str, float]:
    """Seconds that W&B, an evaluation and a checkpoint add to a run, and their share of a run of the recipe."""
    settings: dict[str, dict[str, Any]] = {
        "nothing": {"wandb": False},
        "wandb": {"wandb": True},
        "evaluations": {"wandb": False, "more": (f"evaluate.every={steps // TIMES}",)},
        "checkpoints": {"wandb": False, "more": (f"checkpoint.every={steps // TIMES}",)},
        "everything": {"wandb": True, "times": TIMES},
    }
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for turn in range(turns):
        for name, given in settings.items():
            options = {key: value for key, value in given.items() if key != "more"}
            recipe = recipe_of(given.get("more", ()), steps, workers, **options)
            job = tiny_job(recipe, folder / f"{name}-{turn}", world_size=workers)
            seconds[name].append(run_ranks(workers, whole_arm, job)[0])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["nothing"]
    evaluation, checkpoint = ((medians[name] - base) / (TIMES - 1) for name in ("evaluations", "checkpoints"))
    beside = medians["wandb"] - base + TIMES * (evaluation + checkpoint)
    recipe_steps = load_recipe(RECIPE, []).recipe.train.steps or 0
    return {
        "wandb_seconds": medians["wandb"] - base,
        "evaluation_seconds": evaluation,
        "checkpoint_seconds": checkpoint,
        "everything_over_nothing": medians["everything"] / base,
        "share_of_a_run": beside / (base / steps * recipe_steps),
    }


def told(name: str, found: dict[str, Any]) -> str:
    """A line for people."""
    if name == "whole":
        parts = f"W&B {found['wandb_seconds']:.2f} s a run, an evaluation {found['evaluation_seconds']:.2f} s, "
        parts += f"a checkpoint {found['checkpoint_seconds']:.2f} s"
        return f"{name:13} {parts}: {found['share_of_a_run']:.1%} of a run of {RECIPE}"
    interval = f"{found['ratio']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    times = f"{found['platform_ms']:.1f} ms a step against {found['bare_ms']:.1f} ms"
    text = f"{name:13} {interval}, {times}, {found['pairs']} pairs; losses differ by {found['loss_difference']:.1e}"
    if "trainer_ratio" in found:
        ends = f"{found['trainer_low']:.3f} to {found['trainer_high']:.3f}"
        text += (
            f"\n{'':13} over Trainer {found['trainer_ratio']:.3f} ({ends}), which takes {found['trainer_ms']:.1f} ms"
        )
    return (
        f"{text}\n{'':13} {found['precision']} MFU {found['mfu']:.1%} of {found['product_tflops']:.2f} TFLOP/s of "
        "products of matrices"
    )


def main() -> int:
    """Run the arms and print their figures; the exit code is 1 when losses differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default="plain,accumulation,stage3,20m,whole", help="which, with commas between")
    parser.add_argument("--pairs", type=int, default=8 if FAST else 6, help="pairs of turns of each arm")
    parser.add_argument("--block", type=int, default=14 if FAST else 8, help="steps of a turn")
    parser.add_argument("--warm-up", type=int, default=3, help="steps at the start of a turn that are not counted")
    parser.add_argument("--whole-steps", type=int, default=WHOLE_STEPS if FAST else WHOLE_STEPS // 2)
    parser.add_argument("--whole-turns", type=int, default=2 if FAST else 1)
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--trainer", action="store_true", help="transformers' Trainer with DeepSpeed takes turns too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = options.arms.split(",")
    unknown = set(chosen) - {*ARMS, "whole"}
    if unknown:
        parser.error(f"there is no arm {', '.join(sorted(unknown))}")
    # The platform's second step holds its wait until the opponent is ready.
    if not 2 <= options.warm_up < options.block:
        parser.error("--warm-up must be 2 or more, and less than --block")
    # Deprecations within DeepSpeed, told by every process, would drown the figures.
    os.environ["PYTHONWARNINGS"] = "ignore"
    disable_progress_bar()
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            if name == "whole":
                sizes = {"turns": options.whole_turns, "steps": options.whole_steps}
                figures[name] = whole(Path(scratch) / "whole", workers=options.workers, **sizes)
            else:
                sizes = {"pairs": options.pairs, "block": options.block, "warm_up": options.warm_up}
                figures[name] = compare(name, Path(scratch), workers=options.workers, trainer=options.trainer, **sizes)
            if not options.json:
                sys.stdout.write(told(name, figures[name]) + "\n")
                sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if all(found.get("loss_difference", 0.0) < 1e-3 for found in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
