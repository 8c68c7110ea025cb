"""Parts of the check that need everything installed: DeepSpeed's stages, resuming, Ray and NCCL, the doctor."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from parts import Failed, Part, Setting
from runs import ALL, llama, losses_of, metrics, recorded, shardyard, train, write_recipe


def doctor(setting: Setting) -> dict[str, Any]:
    """`shardyard doctor` finds the machine ready, and names its GPUs."""
    import torch

    code, output = shardyard(["doctor"], Path.cwd())
    if code != 0:
        raise Failed(f"shardyard doctor ends with {code}:\n{output}")
    name = torch.cuda.get_device_name() if setting.gpu else "none; training runs on the CPU"
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
        # A rehearsal on the CPU is of this script, not of the stages.
        for stage in range(4) if setting.gpu else (2,):
            lines = train(Path(scratch) / str(stage), setting, setting.precision(precision), stage)
            losses = losses_of(lines)
            firsts.append(losses[0])
            if not losses[-1] < losses[0] - 0.05 or not math.isfinite(losses[-1]):
                raise Failed(f"{precision} at stage {stage}: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
            found[f"stage_{stage}_last_loss"] = losses[-1]
            if setting.gpu:
                recorded(lines[-1], f"{precision} at stage {stage}")
                found[f"stage_{stage}_GiB"] = lines[-1]["memory/peak_allocated_bytes"] / 2**30
    if max(firsts) - min(firsts) > (1e-3 if precision == "fp32" else 3e-2):
        raise Failed(f"the first losses in {precision} are {firsts}, stage by stage")
    return found


def resume(setting: Setting) -> dict[str, Any]:
    """A run with a break ends with the very same losses as one without."""
    with tempfile.TemporaryDirectory() as scratch:
        precision = setting.precision("bf16")
        straight = train(Path(scratch) / "straight", setting, precision, 2, model={"dropout": 0.1})
        broken = train(Path(scratch) / "broken", setting, precision, 2, until=4, model={"dropout": 0.1})
    losses = [losses_of(lines) for lines in (straight, broken)]
    if losses[0] != losses[1]:
        raise Failed(f"with a break the losses are {losses[1]}, without one {losses[0]}")
    return {"steps": len(losses[0]), "last_loss": losses[0][-1]}


def offload(setting: Setting) -> dict[str, Any]:
    """Optimizer states on the GPU, in host memory and in files give the same losses; the last two take less of it."""
    precision = setting.precision("bf16")
    found: dict[str, Any] = {}
    losses = {}
    with tempfile.TemporaryDirectory() as scratch:
        places = {"gpu": {}, "cpu": {"offload_optimizer": "cpu"}}
        places["nvme"] = {"offload_optimizer": "nvme", "nvme_path": str(Path(scratch) / "disk")}
        for place, zero in places.items():
            lines = train(Path(scratch) / place, setting, precision, 3, zero=zero)
            losses[place] = losses_of(lines)
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
        recipe = write_recipe(folder, setting, setting.precision("bf16"), 2, train={"steps": steps})
        code, output = shardyard(["launch", str(recipe), "--runs-dir", str(folder / "runs")], folder)
        if code != 0:
            raise Failed(f"shardyard launch ends with {code}:\n{output[-3000:]}")
        (run,) = (folder / "runs").iterdir()
        info = json.loads((run / "run.json").read_text())
        lines = metrics(run)
        if info["state"] != "finished" or not (run / "final" / "model.safetensors").is_file():
            raise Failed(f"the run is {info['state']}:\n{output[-3000:]}")
        if setting.gpu:
            recorded(lines[-1], "the launch")
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
    if not setting.gpu:
        ways = {name: ways[name] for name in ("plain", "chunks")}
    firsts, found = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, model in ways.items():
            folder = Path(scratch) / name
            lines = train(folder, setting, setting.precision("bf16"), 2, model=model)
            firsts[name] = losses_of(lines)[0]
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
    found: dict[str, Any] = {}
    losses = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kernels in ("none", "liger"):
            lines = train(Path(scratch) / kernels, setting, "bf16", 2, model=llama(setting, kernels=kernels))
            losses[kernels] = losses_of(lines)
            found |= {
                f"{kernels}_tokens_per_second": lines[-1]["perf/tokens_per_second"],
                f"{kernels}_GiB": lines[-1].get("memory/peak_allocated_bytes", 0) / 2**30,
            }
    off = max(abs(mine - plain) for mine, plain in zip(losses["liger"], losses["none"], strict=True))
    if off > 5e-2:
        raise Failed(f"losses with Liger are {losses['liger']}, without {losses['none']}")
    return {**found, "largest_difference": off}


PARTS = (
    Part("doctor", "shardyard doctor finds the machine ready", ("ray", *ALL), doctor),
    Part("zero-fp32", "ZeRO 0 to 3 in fp32", ALL, zero_fp32),
    Part("zero-bf16", "ZeRO 0 to 3 in bf16", ALL, zero_bf16),
    Part("zero-fp16", "ZeRO 0 to 3 in fp16", ALL, zero_fp16),
    Part("resume", "a run with a break is the same to the bit", ALL, resume),
    Part("offload", "optimizer states on the GPU, in host memory, in files", ALL, offload),
    Part("saving", "checkpointing, offloaded activations and chunks against a plain run", ALL, saving),
    Part("liger", "Liger's kernels against those of PyTorch", ("liger_kernel", "triton", *ALL), liger),
    Part("ray", "a launch through Ray on one GPU over NCCL", ("ray", *ALL), ray),
)
