"""The CPUs and GPUs of this machine, read from /proc and /dev. Does not import torch, so checks stay fast."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# As this process was started: where there is no GPU, `engine/` sets the variable itself, which no user asked for.
CHOSEN_ACCELERATOR = os.environ.get("DS_ACCELERATOR")
_FP16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "fphp"})
# Instructions that multiply bf16. avx_ne_convert only converts it to fp32, which gains nothing over fp32 itself.
_BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "bf16": "Arm"}
# oneDNN, which multiplies for torch on CPUs, uses no instructions above those of this variable; these lack bf16.
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ISAS_WITHOUT_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"})


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Instruction sets of the first CPU in the text of /proc/cpuinfo (`flags` on x86, `Features` on ARM)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def computes_fp16(cpuinfo: str) -> bool | None:
    """Whether the CPU has fp16 arithmetic; None if the text does not tell."""
    flags = cpu_flags(cpuinfo)
    return bool(flags & _FP16_FLAGS) if flags else None


def bf16_units(cpuinfo: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The CPU's bf16 unit, such as `AMX`; "" if it has none, None if the text does not tell.

    torch answers by `torch.ops.mkldnn._is_mkldnn_bf16_supported()`, which also takes CPUs with AVX-512 alone. Those
    convert each number: half the speed of fp32.
    """
    flags = cpu_flags(cpuinfo)
    if not flags:
        return None
    limits = [environment[name].upper() for name in _ISA_VARIABLES if environment.get(name)]
    if limits and limits[0] in _ISAS_WITHOUT_BF16:
        return ""
    return next((label for flag, label in _BF16_UNITS.items() if flag in flags), "")


def read_cpuinfo() -> str:
    """The text of /proc/cpuinfo; empty on systems without it (macOS, Windows)."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA or AMD GPU lists a device here, or WSL passes one through."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev", name).exists() for name in ("kfd", "dxg"))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def computes_on_cpu() -> bool:
    """Whether DS_ACCELERATOR, which DeepSpeed reads too, asks for the CPU whatever devices there are."""
    return CHOSEN_ACCELERATOR == "cpu"
