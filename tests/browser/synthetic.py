"""Run folders as launches write them, made in a moment: healthy, live, failed, damaged, long, with experts, in a sweep.

.venv/bin/python tests/browser/synthetic.py FOLDER      writes the gallery to look at by hand
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shardyard.launch.sweep.folder import SweepFolder
from shardyard.recipe.loading.load import dump_recipe, load_recipe
from shardyard.recipe.sweep.load import load_sweep
from shardyard.tracking.files import JsonlWriter, encode
from shardyard.tracking.run.folder import RunFolder

QUICKSTART = "gpt/quickstart"
WEIGHTS = 804_352
TOKENS_PER_STEP = 4096
# Of a run on GPUs that the plan knows, whose peak of memory is 6.1e10 bytes.
PREDICTED = {
    "device_bytes": 6 * 10**10, "gpu": "h100-80gb", "tokens_per_second": 12_800.0, "step_seconds": 0.32, "mfu": 0.475
}  # fmt: skip
# Text that must be shown as it is, and never be read as HTML.
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


def plan_of(steps: int, weights: int = WEIGHTS, ranks: int = 2) -> dict[str, Any]:
    """The plan as run.json holds it, as far as readers use it."""
    flops_per_token = 6.0 * weights
    tokens = steps * TOKENS_PER_STEP
    memory = {"parameters_bytes": 2 * weights, "gradients_bytes": 2 * weights, "optimizer_bytes": 6 * weights}
    return {
        "world": {"size": ranks, "gpu": False, "device_bytes": 12 * 1024**3},
        "micro_batch": 8,
        "accumulation": 1,
        "steps": steps,
        "tokens_per_step": TOKENS_PER_STEP,
        "tokens": tokens,
        "flops_per_token": flops_per_token,
        "flops": flops_per_token * tokens,
        "architecture": {"family": "gpt2", "parameters": weights, "matmul_parameters": weights},
        "memory": memory
        | {"activations_bytes": 36 * 1024**2, "logits_bytes": 6 * 1024**2, "buffers_bytes": 15 * 1024**2},
        "fits": True,
    }


def losses(steps: int, *, floor: float, seed: int) -> Iterator[float]:
    """A training curve: a power law with noise."""
    noise = random.Random(seed)
    for step in range(1, steps + 1):
        yield floor + (5.6 - floor) * (1 + step / 12) ** -0.62 + noise.gauss(0, 0.035)


def write_run(
    runs_dir: Path,
    name: str,
    *,
    overrides: tuple[str, ...] = (),
    recipe: str = QUICKSTART,
    steps: int = 500,
    done: int | None = None,
    floor: float = 1.5,
    seed: int = 0,
    state: str = "finished",
    began: float | None = None,
    experts: tuple[int, int] | None = None,
    spike_at: int | None = None,
    weights: int = WEIGHTS,
    info: dict[str, Any] | None = None,
    logs: bool = True,
) -> RunFolder:
    """One run folder with everything a launch leaves: recipe, metrics, events, samples, logs, checkpoints."""
    loaded = load_recipe(recipe, [f"name={name}", f"train.steps={steps}", *overrides])
    derived = (
        f"\n# Derived:\n# world size: 2  (CPU ranks)\n# tokens a step: {TOKENS_PER_STEP}  (16 rows × 256 tokens)\n"
    )
    done = steps if done is None else done
    start = time.time() - 3600 - done * 0.4 if began is None else began
    stamp = datetime.fromtimestamp(start, UTC)
    run_id = f"{name}-{stamp:%Y%m%d-%H%M%S}-{random.Random(f'{name}{seed}').randrange(16**4):04x}"
    plan = plan_of(steps, weights)
    provenance = {
        "git": {"commit": "0f1e2d3c4b5a69788796a5b4c3d2e1f001122334", "dirty": False},
        "packages": {"shardyard": "0.1.0", "torch": "2.13.0", "deepspeed": "0.19.8", "ray": "2.60.0"},
        "python": "3.11.7",
        "host": "node-a",
        "gpus": [],
        "cpu": "2 cores",
        "command": ["shardyard", "launch", recipe],
    }
    fields = {"total_steps": steps, "world_size": 2, "attempts": 1, "provenance": provenance, "plan": plan}
    run = RunFolder.create(
        runs_dir, name, loaded.text, dump_recipe(loaded.recipe) + derived, run_id=run_id, **fields, **(info or {})
    )
    run.update(state="running", step=done)
    if state != "running":
        run.update(state=state)
    times = {"created": stamp.isoformat(), "started": stamp.isoformat()}
    if state != "running":
        times["ended"] = datetime.fromtimestamp(start + done * 0.4 + 8, UTC).isoformat()
    run.update(**times)
    _write_metrics(run, done, floor, seed, start, experts, spike_at)
    _write_events(run, done, start, state)
    if logs:
        _write_logs(run, done, state)
    for step in sorted({done // 2, done} - {0}):
        write_checkpoint(run, step)
    return run


def _write_metrics(
    run: RunFolder, done: int, floor: float, seed: int, start: float, experts: tuple[int, int] | None, spike: int | None
) -> None:
    noise = random.Random(seed + 1)
    lines = []
    samples = []
    for step, loss in enumerate(losses(done, floor=floor, seed=seed), start=1):
        if step == spike:
            loss += 6
        line: dict[str, Any] = {"step": step, "time": start + 8 + step * 0.4, "train/loss": loss}
        line |= {"train/lr": 6e-3 * min(1, step / 50), "train/grad_norm": 0.4 + abs(noise.gauss(0, 0.1)) + 4 / step}
        line |= {"train/tokens": step * TOKENS_PER_STEP, "perf/step_seconds": 0.4, "perf/data_wait_seconds": 1e-4}
        line |= {"perf/tokens_per_second": 10_240 + noise.gauss(0, 150), "memory/rss_bytes": 8.5e8 + step * 1e4}
        if experts:
            line |= {"moe/load_max": 1.3 + 0.5 / step, "moe/dropped": 0.0, "perf/mfu": 0.38 + noise.gauss(0, 0.005)}
            line |= {f"system/gpu.{gpu}.powerWatts": 610 + noise.gauss(0, 12) for gpu in range(2)}
            line |= {f"system/gpu.{gpu}.gpu": 96 + noise.gauss(0, 1) for gpu in range(2)}
            line |= {"memory/peak_allocated_bytes": 6.1e10}
        if step % 100 == 0 or step == done:
            line |= {"eval/validation/loss": loss + 0.08, "eval/validation/perplexity": math.exp(loss + 0.08)}
            if experts:
                line |= _expert_tokens(*experts, noise)
            text = f"returns the value of step {step}, and {HOSTILE}" if seed == 99 else f"returns the value at {step}."
            samples.append({"step": step, "time": line["time"], "prompt": "The function ", "text": text})
        lines.append(encode(line))
    run.metrics.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    run.samples.write_text("".join(f"{encode(sample)}\n" for sample in samples), encoding="utf-8")


def _expert_tokens(layers: int, experts: int, noise: random.Random) -> dict[str, float]:
    found: dict[str, float] = {}
    for layer in range(layers):
        shares = [max(0.02, noise.gauss(1, 0.28)) for _ in range(experts)]
        for expert, share in enumerate(shares):
            name = f"eval/validation/moe/tokens/layer_{layer:02d}/expert_{expert:02d}"
            found[name] = round(32_768 * share / sum(shares))
    return found


def _write_events(run: RunFolder, done: int, start: float, state: str) -> None:
    writer = JsonlWriter(run.events)
    writer.append({"time": start, "kind": "notice", "text": "starting 2 Ray workers"})
    writer.append({"kind": "attempt", "time": start + 4, "number": 1, "world_size": 2, "resumed_step": None})
    for step in range(100, done + 1, 100):
        writer.append({"kind": "evaluation", "time": start + step * 0.4, "step": step, "loss": 2.1})
        writer.append(
            {"kind": "checkpoint", "time": start + step * 0.4, "step": step, "seconds": 0.1, "bytes": 26_792_295}
        )
    if state == "failed":
        message = "rank 1: the loss is not finite"
        writer.append({"kind": "failure", "time": start + done * 0.4, "step": done, "message": message, "ranks": [1]})
    if state == "finished":
        writer.append({"kind": "finished", "time": start + done * 0.4, "step": done, "path": "final"})
    writer.close()


def _write_logs(run: RunFolder, done: int, state: str) -> None:
    (run.logs / "driver.log").write_text("starting 2 Ray workers\nplaced on node-a\n", encoding="utf-8")
    for rank in range(2):
        lines = [f"2026-01-01 00:00:{step % 60:02d} INFO step {step} of rank {rank}" for step in range(1, done + 1)]
        lines.insert(3, "2026-01-01 00:00:03 WARNING the tokenizer has no padding token")
        lines.insert(5, f"2026-01-01 00:00:05 INFO read {HOSTILE}")
        if state == "failed" and rank == 1:
            lines += ["Traceback (most recent call last):", "shardyard.errors.TrainingError: the loss is not finite"]
        (run.logs / f"rank-{rank}.log").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_checkpoint(run: RunFolder, step: int) -> Path:
    """A checkpoint whose manifest fits its one file."""
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "trainer.json").write_text("{}\n", encoding="utf-8")
    manifest = {"step": step, "world_size": 2, "files": {"trainer.json": {"sha256": "", "size_bytes": 3}}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def write_live(runs_dir: Path) -> RunFolder:
    """A run that is under way, as far as this process lives: it is its driver."""
    return write_run(runs_dir, "gpt-live", steps=1000, done=420, seed=5, state="running", began=time.time() - 180,
                     info={"predicted": {"device_bytes": 2 * 10**8}})  # fmt: skip


def append_steps(run: RunFolder, first: int, count: int) -> None:
    """What a live run adds."""
    writer = JsonlWriter(run.metrics)
    for step in range(first, first + count):
        tokens = step * TOKENS_PER_STEP
        writer.append({"step": step, "time": time.time(), "train/loss": 1.4, "train/tokens": tokens})
    writer.close()


def write_damaged(runs_dir: Path) -> list[RunFolder]:
    """Garbled lines within good ones, a checkpoint that lost a file, and a run.json that was cut off."""
    garbled = write_run(runs_dir, "garbled-metrics", steps=120, seed=11)
    text = garbled.metrics.read_text(encoding="utf-8").splitlines()
    text[40:43] = ["{not json", "\x00\x01\x02", '{"step": "x"}']
    garbled.metrics.write_text("\n".join(text) + '\n{"step": 121, "train/lo', encoding="utf-8")
    (garbled.checkpoints / "step-00000060" / "trainer.json").unlink()
    cut = write_run(runs_dir, "cut-off", steps=60, seed=12)
    whole = cut.info_file.read_text(encoding="utf-8")
    cut.info_file.write_text(whole[: len(whole) // 3], encoding="utf-8")
    return [garbled, cut]


def write_sweep(runs_dir: Path) -> SweepFolder:
    """A sweep over sizes and tokens whose trials follow a law, so that it can be fitted."""
    loaded = load_sweep("sweeps/scaling-laws")
    folder = SweepFolder.create(runs_dir, loaded)
    number = 0
    for size, setting in enumerate(loaded.sweep.parameters["size"].settings or []):
        weights = (33_000, 115_000, 330_000, 620_000)[size]
        for tokens in (262_144, 524_288, 1_048_576):
            loss = 1.1 + 41 / weights**0.34 + 410 / tokens**0.37
            parameters = {**setting, "train.tokens": tokens}
            run = _trial(runs_dir, folder.id, number, parameters, tokens // TOKENS_PER_STEP, loss, weights)
            folder.note(number, run=run.id, parameters=parameters, error=None)
            number += 1
    folder.write_table()
    folder.update(state="finished")
    return folder


def _trial(
    runs_dir: Path, sweep: str, number: int, parameters: dict[str, Any], steps: int, loss: float, weights: int
) -> RunFolder:
    overrides = (f"optimizer.lr={parameters['optimizer.lr']}", f"tracking.wandb.group={sweep}")
    name = f"scaling-laws-{number:03d}"
    info = {"sweep": {"id": sweep, "trial": number, "parameters": parameters}}
    run = write_run(
        runs_dir, name, overrides=overrides, steps=steps, seed=200 + number, weights=weights, info=info, logs=False
    )
    last = {"step": steps, "time": time.time() - 60, "eval/validation/loss": loss}
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write(encode(last) + "\n")
    return run


def write_gallery(runs_dir: Path) -> dict[str, RunFolder]:
    """One of each kind, and two recipes with three seeds each."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    found: dict[str, RunFolder] = {}
    hours = iter(range(50, 0, -2))
    for rate, floor in (("6e-3", 1.5), ("2e-3", 1.72)):
        for seed in (1, 2, 3):
            name = f"gpt-lr-{rate}"
            found[f"{name}-{seed}"] = write_run(
                runs_dir, name, overrides=(f"optimizer.lr={rate}", f"train.seed={seed}"),
                floor=floor + 0.05 * seed, seed=seed, began=time.time() - 3600 * next(hours),
            )  # fmt: skip
    found["hostile"] = write_run(
        runs_dir, "hostile", seed=99, overrides=(f"description={json.dumps(HOSTILE)}",), info={"outcome": HOSTILE},
        began=time.time() - 3600 * next(hours),
    )  # fmt: skip
    found["spike"] = write_run(
        runs_dir, "gpt-spike", steps=6000, spike_at=2345, seed=21, logs=False, began=time.time() - 3600 * next(hours)
    )
    found["failed"] = write_run(
        runs_dir, "gpt-diverged", steps=800, done=310, state="failed", seed=31, began=time.time() - 3600 * next(hours)
    )
    found["experts"] = write_run(
        runs_dir, "mixtral-small", recipe="moe/mixtral-small", steps=500, experts=(6, 8), seed=41,
        began=time.time() - 3600 * next(hours), info={"predicted": PREDICTED},
    )  # fmt: skip
    found["live"] = write_live(runs_dir)
    found["garbled"], found["cut"] = write_damaged(runs_dir)
    write_sweep(runs_dir)
    return found


if __name__ == "__main__":
    write_gallery(Path(sys.argv[1]))
