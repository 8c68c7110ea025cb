"""Runs of the parts: small recipes of text that comes with Python, each trained by the command line in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from parts import REHEARSAL_SECONDS, ROOT, Failed, Setting

# Modules that the platform needs.
ALL = ("deepspeed", "transformers", "datasets", "pydantic", "ruamel.yaml", "psutil")
_WIDE = {"n_layer": 8, "n_head": 12, "n_embd": 768, "n_positions": 512}
_TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}
_LLAMA = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
_TINY_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(setting: Setting, **model: Any) -> dict[str, Any]:
    """The section of a Llama of 90 million weights, or of a tiny one."""
    sizes = _TINY_LLAMA if setting.rehearses else _LLAMA
    return {"family": "llama", "config": {**sizes, "max_position_embeddings": 512}, **model}


def recorded(line: dict[str, Any], what: str) -> None:
    """Fail unless a line of metrics has MFU and memory."""
    if not 0 < line.get("perf/mfu", 0) < 1 or not line.get("memory/peak_allocated_bytes", 0) > 0:
        raise Failed(f"{what}: MFU is {line.get('perf/mfu')}, memory {line.get('memory/peak_allocated_bytes')}")


def train(
    folder: Path,
    setting: Setting,
    precision: str,
    stage: int,
    *,
    until: int | None = None,
    ray: bool = False,
    **sections: dict[str, Any],
) -> list[dict[str, Any]]:
    """Metrics of a run in a process of its own, or through Ray; with `until` it pauses there and is resumed."""
    recipe = write_recipe(folder, setting, precision, stage, **sections)
    options = ["--until", str(until)] if until else []
    options += [] if ray else ["--local"]
    code, output = shardyard(["launch", str(recipe), "--runs-dir", str(folder / "runs"), *options], folder)
    if code != 0:
        raise Failed(f"{precision} at stage {stage} ends with {code}:\n{output[-3000:]}")
    (run,) = (folder / "runs").iterdir()
    if until:
        code, output = shardyard(["resume", run.name, "--runs-dir", str(folder / "runs")], folder)
        if code != 0:
            raise Failed(f"resuming {precision} at stage {stage} ends with {code}:\n{output[-3000:]}")
    return metrics(run)


def losses_of(lines: list[dict[str, Any]]) -> list[float]:
    """The training losses of a run, step by step."""
    return [line["train/loss"] for line in lines if "train/loss" in line]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_recipe(folder: Path, setting: Setting, precision: str, stage: int, **sections: dict[str, Any]) -> Path:
    """A recipe of text that comes with Python, for one rank; `sections` are merged over its own."""
    length, batch = (32, 4) if setting.rehearses else (512, 16)
    steps = sections.get("train", {}).get("steps", 8)
    fields: dict[str, Any] = {
        "name": "check",
        "model": {"family": "gpt2", "config": _TINY if setting.rehearses else _WIDE, "dropout": 0.0},
        "data": {
            "sequence_length": length,
            "streams": 4,
            "train": [{"source": "python-docs"}],
            "validation": [{"source": "python-docs"}],
        },
        "train": {"steps": steps, "global_batch": batch, "precision": precision, "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "zero": {"stage": stage},
        "checkpoint": {"every": 4},
        "evaluate": {"every": steps, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}, "every": 1},
        "cluster": {"workers": 1, "gpus_per_worker": 1 if setting.gpu else 0},
    }
    for name, section in sections.items():
        fields[name] = {**fields.get(name, {}), **section}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "check.yaml"
    # JSON is YAML.
    path.write_text(json.dumps(fields))
    return path


def shardyard(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of the command line, from the sources of this checkout."""
    path = os.pathsep.join([str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "shardyard.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=REHEARSAL_SECONDS,  # the part has its own limit
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
