"""Parts of the check that need everything installed: DeepSpeed's stages, resuming, Ray and NCCL, the doctor."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts import LIMIT_SECONDS, ROOT, Failed, Part, Setting

_ALL = ("deepspeed", "transformers", "datasets", "pydantic", "ruamel.yaml", "psutil")
_WIDE = {"n_layer": 8, "n_head": 12, "n_embd": 768, "n_positions": 512}
_TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}


def doctor(setting: Setting) -> dict[str, Any]:
    """`shardyard doctor` finds the machine ready, and names its GPUs."""
    import torch

    code, output = _shardyard(["doctor"], Path.cwd())
    if code != 0:
        raise Failed(f"shardyard doctor ends with {code}:\n{output}")
    name = "none; training runs on the CPU" if setting.rehearses else torch.cuda.get_device_name()
    if name not in output:
        raise Failed(f"shardyard doctor does not name {name}:\n{output}")
    return {"lines": len(output.splitlines())}


def zero_fp32(setting: Setting) -> dict[str, Any]:
    """Every ZeRO stage in fp32: the same first loss, later ones fall, speed and memory are recorded."""
    return _stages(setting, "fp32")


def zero_bf16(setting: Setting) -> dict[str, Any]:
    """The same in bf16."""
    return _stages(setting, "bf16")


def zero_fp16(setting: Setting) -> dict[str, Any]:
    """The same in fp16, with a loss scale."""
    return _stages(setting, "fp16")


def _stages(setting: Setting, precision: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    firsts = []
    with tempfile.TemporaryDirectory() as scratch:
        # The rehearsal is of this script, not of the stages; and a CPU has no fp16.
        for stage in (2,) if setting.rehearses else range(4):
            narrow = "fp32" if setting.rehearses else precision
            lines = _train(Path(scratch) / str(stage), setting, narrow, stage)
            losses = [line["train/loss"] for line in lines if "train/loss" in line]
            firsts.append(losses[0])
            if not losses[-1] < losses[0] - 0.05 or not math.isfinite(losses[-1]):
                raise Failed(f"{precision} at stage {stage}: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
            found[f"stage_{stage}_last_loss"] = losses[-1]
            if not setting.rehearses:
                _recorded(lines[-1], f"{precision} at stage {stage}")
                found[f"stage_{stage}_GiB"] = lines[-1]["memory/peak_allocated_bytes"] / 2**30
    if max(firsts) - min(firsts) > (1e-3 if precision == "fp32" else 3e-2):
        raise Failed(f"the first losses in {precision} are {firsts}, stage by stage")
    return found


def _recorded(line: dict[str, Any], what: str) -> None:
    if not 0 < line.get("perf/mfu", 0) < 1 or not line.get("memory/peak_allocated_bytes", 0) > 0:
        raise Failed(f"{what}: MFU is {line.get('perf/mfu')}, memory {line.get('memory/peak_allocated_bytes')}")


def resume(setting: Setting) -> dict[str, Any]:
    """A run with a break ends with the very same losses as one without."""
    with tempfile.TemporaryDirectory() as scratch:
        precision = "fp32" if setting.rehearses else "bf16"
        straight = _train(Path(scratch) / "straight", setting, precision, 2, dropout=0.1)
        broken = _train(Path(scratch) / "broken", setting, precision, 2, dropout=0.1, until=4)
    losses = [[line["train/loss"] for line in lines if "train/loss" in line] for lines in (straight, broken)]
    if losses[0] != losses[1]:
        raise Failed(f"with a break the losses are {losses[1]}, without one {losses[0]}")
    return {"steps": len(losses[0]), "last_loss": losses[0][-1]}


def offload(setting: Setting) -> dict[str, Any]:
    """Optimizer states on the GPU, in host memory and in files give the same losses; the last two take less of it."""
    precision = "fp32" if setting.rehearses else "bf16"
    found: dict[str, Any] = {}
    losses = {}
    with tempfile.TemporaryDirectory() as scratch:
        places = {"gpu": {}, "cpu": {"offload_optimizer": "cpu"}}
        places["nvme"] = {"offload_optimizer": "nvme", "nvme_path": str(Path(scratch) / "disk")}
        for place, zero in places.items():
            lines = _train(Path(scratch) / place, setting, precision, 3, zero=zero)
            losses[place] = [line["train/loss"] for line in lines if "train/loss" in line]
            if not setting.rehearses:
                found[f"{place}_GiB"] = lines[-1]["memory/peak_allocated_bytes"] / 2**30
                found[f"{place}_tokens_per_second"] = lines[-1]["perf/tokens_per_second"]
    worst = max(abs(a - b) for place in ("cpu", "nvme") for a, b in zip(losses["gpu"], losses[place], strict=True))
    if worst > (1e-4 if precision == "fp32" else 2e-2):
        raise Failed(f"the losses differ by {worst:.2e}: {losses}")
    if not setting.rehearses and max(found["cpu_GiB"], found["nvme_GiB"]) >= found["gpu_GiB"]:
        raise Failed(f"offloading saves no memory of the GPU: {found}")
    return found | {"largest_difference": worst}


def ray(setting: Setting) -> dict[str, Any]:
    """A launch through Ray on one GPU, over NCCL: its place, its records, samples of the GPU, the exported model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        steps = 8 if setting.rehearses else 60
        recipe = _recipe(folder, setting, "fp32" if setting.rehearses else "bf16", 2, steps=steps)
        code, output = _shardyard(["launch", str(recipe), "--runs-dir", str(folder / "runs")], folder)
        if code != 0:
            raise Failed(f"shardyard launch ends with {code}:\n{output[-3000:]}")
        (run,) = (folder / "runs").iterdir()
        info = json.loads((run / "run.json").read_text())
        lines = _metrics(run)
        if info["state"] != "finished" or not (run / "final" / "model.safetensors").is_file():
            raise Failed(f"the run is {info['state']}:\n{output[-3000:]}")
        if not setting.rehearses:
            _recorded(lines[-1], "the launch")
            gpus = info["placement"][0]["gpus"]
            if gpus != [["0"]]:
                raise Failed(f"run.json says that the rank has the GPUs {gpus}")
    return {
        "attempts": info["attempts"],
        "last_loss": lines[-1]["train/loss"],
        "tokens_per_second": lines[-1]["perf/tokens_per_second"],
        "mfu": lines[-1].get("perf/mfu"),
    }


def saving(setting: Setting) -> dict[str, Any]:
    """Ways to keep fewer activations: the losses of a plain run, less memory, and about what their plans say."""
    chunk = 16 if setting.rehearses else 1024
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "full": {"activation_checkpointing": "full"},
        "selective": {"activation_checkpointing": "selective"},
        "offloaded": {"activation_checkpointing": "full", "offload_activations": True},
        "chunks": {"logits_chunk": chunk, "mlp_chunk": chunk},
    }
    if setting.rehearses:
        ways = {name: ways[name] for name in ("plain", "chunks")}
    firsts, found = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, model in ways.items():
            folder = Path(scratch) / name
            lines = _train(folder, setting, "fp32" if setting.rehearses else "bf16", 2, model=model)
            firsts[name] = next(line["train/loss"] for line in lines if "train/loss" in line)
            if not setting.rehearses:
                peak = max(line.get("memory/peak_allocated_bytes", 0) for line in lines)
                found |= {f"{name}_GiB": peak / 2**30, f"{name}_over_plan": peak / _planned(folder)}
    off = max(abs(first - firsts["plain"]) for first in firsts.values())
    if off > 3e-2:
        raise Failed(f"the first losses are {firsts}")
    for name in ways if not setting.rehearses else ():
        if name != "plain" and not found[f"{name}_GiB"] < found["plain_GiB"]:
            raise Failed(f"{name} takes {found[f'{name}_GiB']:.2f} GiB, a plain run {found['plain_GiB']:.2f}")
        if not 0.5 < found[f"{name}_over_plan"] < 1.15:
            raise Failed(f"{name} takes {found[f'{name}_over_plan']:.2f} times what its plan says")
    return {**found, "largest_difference": off}


def _planned(folder: Path) -> int:
    """Bytes of a rank, as the plan of the only run in a folder says when it starts."""
    (run,) = (folder / "runs").iterdir()
    return int(json.loads((run / "run.json").read_text())["predicted"]["device_bytes"])


def liger(setting: Setting) -> dict[str, Any]:
    """Liger's kernels in a Llama: the losses of PyTorch's own operations; memory and speed are recorded."""
    config = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
    model = {"family": "llama", "config": config | {"max_position_embeddings": 512}}
    found: dict[str, Any] = {}
    losses = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kernels in ("none", "liger"):
            lines = _train(Path(scratch) / kernels, setting, "bf16", 2, model={**model, "kernels": kernels})
            losses[kernels] = [line["train/loss"] for line in lines if "train/loss" in line]
            found |= {
                f"{kernels}_tokens_per_second": lines[-1]["perf/tokens_per_second"],
                f"{kernels}_GiB": lines[-1].get("memory/peak_allocated_bytes", 0) / 2**30,
            }
    off = max(abs(mine - plain) for mine, plain in zip(losses["liger"], losses["none"], strict=True))
    if off > 5e-2:
        raise Failed(f"losses with Liger are {losses['liger']}, without {losses['none']}")
    return {**found, "largest_difference": off}


def _train(
    folder: Path,
    setting: Setting,
    precision: str,
    stage: int,
    *,
    dropout: float = 0.0,
    until: int | None = None,
    zero: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Metrics of a run in a process of its own; with `until` it pauses there and is resumed."""
    recipe = _recipe(folder, setting, precision, stage, dropout=dropout, zero=zero, model=model)
    pause = ["--until", str(until)] if until else []
    code, output = _shardyard(["launch", str(recipe), "--local", "--runs-dir", str(folder / "runs"), *pause], folder)
    if code != 0:
        raise Failed(f"{precision} at stage {stage} ends with {code}:\n{output[-3000:]}")
    (run,) = (folder / "runs").iterdir()
    if until:
        code, output = _shardyard(["resume", run.name, "--runs-dir", str(folder / "runs")], folder)
        if code != 0:
            raise Failed(f"resuming {precision} at stage {stage} ends with {code}:\n{output[-3000:]}")
    return _metrics(run)


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _recipe(
    folder: Path,
    setting: Setting,
    precision: str,
    stage: int,
    *,
    dropout: float = 0.0,
    steps: int = 8,
    zero: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
) -> Path:
    """A recipe of text that comes with Python, for one rank."""
    length, batch = (32, 4) if setting.rehearses else (512, 16)
    fields = {
        "name": "check",
        "model": {
            "family": "gpt2",
            "config": _TINY if setting.rehearses else _WIDE,
            "dropout": dropout,
            **(model or {}),
        },
        "data": {
            "sequence_length": length,
            "streams": 4,
            "train": [{"source": "python-docs"}],
            "validation": [{"source": "python-docs"}],
        },
        "train": {"steps": steps, "global_batch": batch, "precision": precision, "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "zero": {"stage": stage, **(zero or {})},
        "checkpoint": {"every": 4},
        "evaluate": {"every": steps, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}, "every": 1},
        "cluster": {"workers": 1, "gpus_per_worker": 0 if setting.rehearses else 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "check.yaml"
    # JSON is YAML.
    path.write_text(json.dumps(fields))
    return path


def _shardyard(arguments: list[str], folder: Path) -> tuple[int, str]:
    path = os.pathsep.join([str(ROOT / "platform"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "shardyard.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


PARTS = (
    Part("doctor", "shardyard doctor finds the machine ready", ("ray", *_ALL), doctor),
    Part("zero-fp32", "ZeRO 0 to 3 in fp32", _ALL, zero_fp32),
    Part("zero-bf16", "ZeRO 0 to 3 in bf16", _ALL, zero_bf16),
    Part("zero-fp16", "ZeRO 0 to 3 in fp16", _ALL, zero_fp16),
    Part("resume", "a run with a break is the same to the bit", _ALL, resume),
    Part("offload", "optimizer states on the GPU, in host memory, in files", _ALL, offload),
    Part("saving", "checkpointing, offloaded activations and chunks against a plain run", _ALL, saving),
    Part("liger", "Liger's kernels against those of PyTorch", ("liger_kernel", "triton", *_ALL), liger),
    Part("ray", "a launch through Ray on one GPU over NCCL", ("ray", *_ALL), ray),
)
