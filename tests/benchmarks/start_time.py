"""From the command to the first step: `shardyard launch` on a warm Ray cluster over torchrun, with the same model.

Each turn times both commands from the start of the process to the end of the first optimizer step: torchrun with a
script of forty lines, and the platform with all that it does before (plan, run folder, Ray workers, W&B offline).
`difference` and `ratio` are those of the medians; the other figures say where the platform's time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import World
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.files import read_jsonl
from support.cluster import ray_head

HERE = Path(__file__).parent
STEPS = 3
PHASES = ("planned", "started", "placed", "assembled", "first_step")


def torchrun_arm(shape: dict[str, Any], workers: int) -> dict[str, float]:
    """Seconds to the first step of the plain script."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    began = time.time()
    done = subprocess.run(
        [*program, str(HERE / "plain_torchrun.py"), json.dumps(shape)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"},
        timeout=300,
    )
    steps = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(steps) == STEPS, done.stderr
    return {"first_step": steps[0] - began}


def platform_arm(environment: dict[str, str], runs: Path, workers: int) -> dict[str, float]:
    """Seconds from the command to each phase, as the run folder tells them."""
    options = [f"train.steps={STEPS}", "train.tokens=", "schedule.warmup=1", f"cluster.workers={workers}"]
    options += ["evaluate.every=1000", "checkpoint.every=1000", "sample.prompts=[]"]
    command = [sys.executable, "-m", "shardyard.cli.main", "launch", "gpt/quickstart", "-q", "--runs-dir", str(runs)]
    began = time.time()
    done = subprocess.run(
        [*command, *(part for option in options for part in ("-s", option))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=300,
    )
    ended = time.time()
    assert done.returncode == 0, done.stdout
    folder = runs / done.stdout.split()[-1]
    info = json.loads((folder / "run.json").read_text())
    events = {event["kind"]: event["time"] for event in reversed(read_jsonl(folder / "events.jsonl"))}
    (first, *_) = read_jsonl(folder / "metrics.jsonl")
    times = {
        "planned": _seconds(info["created"]),
        "started": events["notice"],
        "placed": _seconds(info["placed"]),
        "assembled": events["attempt"],
        "first_step": first["time"],
        "ended": ended,
    }
    return {name: value - began for name, value in times.items()}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _shape(workers: int) -> dict[str, Any]:
    recipe = load_recipe("gpt/quickstart", [f"train.steps={STEPS}", "train.tokens=", "schedule.warmup=1"]).recipe
    plan = prepare(recipe, World(size=workers, gpu=False))
    return {
        "config": recipe.model.config,
        "vocabulary": plan.architecture.vocabulary,
        "length": recipe.data.sequence_length,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "deepspeed": {**plan.deepspeed, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}},
    }


def main() -> int:
    """Run all turns after one that warms up, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="turns of each arm")
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    shape = _shape(options.workers)
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch, ray_head(Path(scratch)) as environment:
        for turn in range(options.turns + 1):
            platform = platform_arm(environment, Path(scratch) / "runs", options.workers)
            plain = torchrun_arm(shape, options.workers)
            if turn:
                ours.append(platform)
                theirs.append(plain)
    figures = {name: statistics.median(arm[name] for arm in ours) for name in (*PHASES, "ended")}
    torchrun = statistics.median(arm["first_step"] for arm in theirs)
    figures |= {"torchrun_first_step": torchrun, "difference": figures["first_step"] - torchrun}
    figures["ratio"] = figures["first_step"] / torchrun
    if options.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        units = {name: "" if name == "ratio" else " s" for name in figures}
        sys.stdout.write("".join(f"{name:34} {value:10.2f}{units[name]}\n" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
