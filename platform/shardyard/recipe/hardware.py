"""What this machine can compute with, read from /proc and /dev. Pure of torch, so that checks stay instant."""

from __future__ import annotations

import os
from pathlib import Path

# As this process was started: where there is no GPU, `engine/` sets the variable itself, which is nobody's wish.
ASKED_ACCELERATOR = os.environ.get("DS_ACCELERATOR")
_FP16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "fphp"})


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Instruction sets of the first CPU in the text of /proc/cpuinfo (`flags` on x86, `Features` on ARM)."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def computes_fp16(cpuinfo: str) -> bool | None:
    """Whether the CPU has arithmetic in fp16; None where the text does not say."""
    flags = cpu_flags(cpuinfo)
    return bool(flags & _FP16_FLAGS) if flags else None


def read_cpuinfo() -> str:
    """The text of /proc/cpuinfo; empty where there is none (macOS, Windows)."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA or AMD GPU shows a device here, or Windows passes one on to Linux."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/dev", name).exists() for name in ("kfd", "dxg"))


def computes_on_cpu() -> bool:
    """Whether DS_ACCELERATOR, which DeepSpeed reads too, asks for the CPU whatever devices there are."""
    return ASKED_ACCELERATOR == "cpu"
