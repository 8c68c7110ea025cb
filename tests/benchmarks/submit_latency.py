"""From `shardyard submit` to the first step on a warm Ray cluster, over torchrun with the same model.

`difference` and `ratio` are those of the medians over all turns. The other figures say where the time goes, counted
from the start of the command: the plan is made and the job is sent (`submitted`), Ray has started the entry point
(`entered`), the driver asks for workers (`started`), the workers have their resources (`placed`), they have built the
model (`assembled`).
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.start_time import STEPS, _shape, torchrun_arm
from shardyard.tracking.files import read_jsonl
from support.cluster import ray_head

PHASES = ("submitted", "entered", "started", "placed", "assembled", "first_step")
COMMAND = [sys.executable, "-m", "shardyard.cli.main"]


def platform_arm(environment: dict[str, str], runs: Path, workers: int) -> dict[str, float]:
    """Seconds from the command to each phase, as the run folder tells them."""
    options = [f"train.steps={STEPS}", "train.tokens=", "schedule.warmup=1", f"cluster.workers={workers}"]
    options += ["evaluate.every=1000", "checkpoint.every=1000", "sample.prompts=[]", "tracking.wandb.mode=offline"]
    command = [*COMMAND, "submit", "gpt/quickstart", "-q", "--runs-dir", str(runs)]
    began = time.time()
    done = subprocess.run(
        [*command, *(part for option in options for part in ("-s", option))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    submitted = time.time()
    job = done.stdout.split()[-1]
    subprocess.run([*COMMAND, "wait", job], check=True, env={**os.environ, **environment}, timeout=300)
    folder = runs / job
    info = json.loads((folder / "run.json").read_text())
    events = {event["kind"]: event["time"] for event in reversed(read_jsonl(folder / "events.jsonl"))}
    (first, *_) = read_jsonl(folder / "metrics.jsonl")
    times = {
        "submitted": submitted,
        "entered": datetime.fromisoformat(info["created"]).timestamp(),
        "started": events["notice"],
        "placed": datetime.fromisoformat(info["placed"]).timestamp(),
        "assembled": events["attempt"],
        "first_step": first["time"],
    }
    return {name: value - began for name, value in times.items()}


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
    with tempfile.TemporaryDirectory() as scratch, ray_head(Path(scratch), dashboard=True) as environment:
        for turn in range(options.turns + 1):
            platform = platform_arm(environment, Path(scratch) / "runs", options.workers)
            plain = torchrun_arm(shape, options.workers)
            if turn:
                ours.append(platform)
                theirs.append(plain)
    figures = {name: statistics.median(arm[name] for arm in ours) for name in PHASES}
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
