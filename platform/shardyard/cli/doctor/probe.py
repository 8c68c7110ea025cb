"""Checks of torch, DeepSpeed and the processors for `shardyard doctor`.

torch and DeepSpeed are probed in a separate process: a broken installation is reported instead of crashing doctor, and
their output does not appear in the report.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal, TypedDict

from shardyard.hardware import bf16_units, read_cpuinfo
from shardyard.tracking.run.provenance import cpu_model, gpu_names

Level = Literal["ok", "warn", "missing"]
PROBE_SECONDS = 90.0


@dataclass(frozen=True)
class Check:
    """One line of the report. `needed`: even a CPU run cannot work without it."""

    name: str
    status: Level
    detail: str
    advice: str = ""
    needed: bool = False


class Probe(TypedDict, total=False):
    """The result of `_PROBE`. All keys of a library are present unless it has an error."""

    torch_error: str
    torch: str
    cuda: str | None
    hip: str | None
    gloo: bool
    nccl: bool
    sum: float
    gpus: list[str]
    capability: list[int] | None
    gpu_bf16: bool
    deepspeed_error: str
    deepspeed: str
    accelerator: str
    fp16: bool
    ops: dict[str, bool]


# A string, because torch and DeepSpeed must not be imported into this process; see above.
_PROBE = """
import json
out = {}
def fits(op):
    try:
        return bool(op.is_compatible(False))
    except Exception:  # Operations for GPUs raise where there is no compiler for them.
        return False
try:
    import torch, torch.distributed as d
    cuda = torch.cuda.is_available()
    out |= {"torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    out |= {"gloo": d.is_gloo_available(), "nccl": d.is_nccl_available(), "sum": float(torch.ones(2).sum())}
    out["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    out["capability"] = list(torch.cuda.get_device_capability()) if cuda else None
    out["gpu_bf16"] = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
except BaseException as error:
    out["torch_error"] = f"{type(error).__name__}: {error}"
try:
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder.all_ops import ALL_OPS
    out |= {"deepspeed": deepspeed.__version__, "accelerator": get_accelerator().device_name()}
    out["fp16"] = bool(get_accelerator().is_fp16_supported())
    out["ops"] = {name: fits(op) for name, op in ALL_OPS.items()}
except BaseException as error:
    out["deepspeed_error"] = f"{type(error).__name__}: {error}"
print("\\nPROBE" + json.dumps(out))
"""


def probe_torch() -> Probe:
    """The versions and abilities of torch and DeepSpeed; `torch_error` and `deepspeed_error` if an import fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"torch_error": str(error), "deepspeed_error": str(error)}
    found = re.findall(r"^PROBE(\{.*\})$", done.stdout, re.MULTILINE)
    if not found:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        reason = f"importing it ended with exit code {done.returncode} ({last})"
        return {"torch_error": reason, "deepspeed_error": reason}
    answer: Probe = json.loads(found[-1])
    return answer


def check_torch(probe: Probe) -> Check:
    if "torch_error" in probe:
        advice = "Install Shardyard again into a fresh environment: `make setup`."
        return Check("torch", "missing", f"cannot be imported: {probe['torch_error']}", advice, needed=True)
    build = f"CUDA {probe['cuda']}" if probe["cuda"] else f"ROCm {probe['hip']}" if probe["hip"] else "CPU"
    return Check("torch", "ok", f"{probe['torch']}, {build} build", needed=True)


def check_gpus(probe: Probe) -> Check:
    seen, driver = probe.get("gpus") or [], gpu_names()
    if seen:
        return Check("GPUs", "ok", _counted(seen))
    if driver:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        advice = (
            f"CUDA_VISIBLE_DEVICES={hidden!r} hides them; unset it."
            if hidden is not None
            else "Install a CUDA build of torch of the same version."
        )
        return Check("GPUs", "warn", f"the driver has {_counted(driver)}, torch sees none", advice)
    return Check("GPUs", "ok", "none; training runs on the CPU")


def check_collectives(probe: Probe) -> Check:
    backends = [name for name, there in (("gloo", probe.get("gloo")), ("nccl", probe.get("nccl"))) if there]
    if "gloo" not in backends:
        advice = "Install the version of torch that Shardyard requires: `make setup`."
        return Check("collectives", "missing", "this torch has no gloo", advice, needed=True)
    if probe.get("gpus") and "nccl" not in backends:
        return Check("collectives", "warn", "gloo only", "GPUs communicate over NCCL: install a torch build with it.")
    return Check("collectives", "ok", ", ".join(backends), needed=True)


def check_cpu_precision(probe: Probe) -> Check:
    units = bf16_units(read_cpuinfo())
    model = cpu_model() or platform.machine()
    if units:
        fp16 = "" if probe.get("fp16") else "; no fp16 training"
        return Check("CPU numbers", "ok", f"{model}: fp32, fast bf16 ({units}){fp16}")
    return Check(
        "CPU numbers",
        "warn",
        f"{model}: fp32; bf16 is slow, because the CPU has no units for it",
        "Recipes that name no train.precision train in fp32 here; those with bf16 need `-s train.precision=fp32`.",
    )


def check_gpu_precision(probe: Probe) -> Check:
    if not probe.get("gpus"):
        return Check("GPU numbers", "ok", "no GPU")
    major, minor = probe["capability"] or (0, 0)
    if probe["gpu_bf16"]:
        return Check("GPU numbers", "ok", f"fp32, bf16, fp16 (compute capability {major}.{minor})")
    advice = "Train with `-s train.precision=fp16`, or fp32."
    return Check("GPU numbers", "warn", f"no bf16 units (compute capability {major}.{minor})", advice)


def check_deepspeed(probe: Probe) -> Check:
    if "deepspeed_error" in probe:
        return Check(
            "DeepSpeed",
            "missing",
            f"cannot be imported: {probe['deepspeed_error']}",
            "Install the version that Shardyard requires: `make setup`.",
            needed=True,
        )
    usable = sorted(name for name, fits in probe["ops"].items() if fits and name != "deepspeed_not_implemented")
    shown = ", ".join(usable) or "none"
    return Check(
        "DeepSpeed",
        "ok",
        f"{probe['deepspeed']} on {probe['accelerator']}; operations for this machine: {shown}",
        needed=True,
    )


def _counted(names: list[str]) -> str:
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
