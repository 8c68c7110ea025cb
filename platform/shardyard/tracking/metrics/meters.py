"""Meters of speed and memory. Hardware with unknown peak performance reports no MFU instead of a wrong one."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections import deque
from pathlib import Path

import torch

from shardyard.tracking.metrics import record

_TERA = 1e12


def _peaks(
    fp32: float, half: float | None = None, bf16: float | None = None, tf32: float | None = None
) -> dict[str, float]:
    """TFLOP/s by precision; `half` is for fp16, and for bf16 unless that is given as 0 (no bf16 units)."""
    values = {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": half if bf16 is None else bf16}
    return {precision: value * _TERA for precision, value in values.items() if value}


# Dense peaks (no structured sparsity) from the vendors' data sheets; fp16 and bf16 with fp32 accumulation, fp32
# without TF32. The whole device name must match: laptop chips, MIG slices and export variants are slower.
_ACCELERATORS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"B200", _peaks(75, 2250, tf32=1125)),
    (r"GB200", _peaks(80, 2500, tf32=1250)),
    (r"H200|GH200( \d+GB)?|H100 \d+GB HBM3|H100 SXM\d?", _peaks(67, 989.4, tf32=494.7)),
    (r"H200 NVL|H100 NVL", _peaks(60, 835.5, tf32=417.5)),
    (r"H100 PCIe", _peaks(51, 756, tf32=378)),
    (r"A100([- ](SXM4|PCIE|PCIe))?([- ]\d+GB)?( PCIe)?", _peaks(19.5, 312, tf32=156)),
    (r"A30", _peaks(10.3, 165, tf32=82)),
    (r"A40", _peaks(37.4, 149.7, tf32=74.8)),
    (r"A10", _peaks(31.2, 125, tf32=62.5)),
    (r"A10G", _peaks(35, 70, tf32=35)),
    (r"L4", _peaks(30.3, 121, tf32=60)),
    (r"L40", _peaks(90.5, 181, tf32=90.5)),
    (r"L40S", _peaks(91.6, 362, tf32=183)),
    (r"V100-SXM[23](-\d+GB)?", _peaks(15.7, 125, bf16=0)),
    (r"V100-PCIE(-\d+GB)?", _peaks(14, 112, bf16=0)),
    (r"T4", _peaks(8.1, 65, bf16=0)),
    (r"GeForce RTX 4090", _peaks(82.6, 165.2, tf32=82.6)),
    (r"GeForce RTX 3090", _peaks(35.6, 71, tf32=35.6)),
    # PyTorch shows each of the two dies of an MI250X as a device, so this is half the data sheet's number.
    (r"Instinct MI250X?( / MI250)?", _peaks(23.9, 191.5)),
    (r"Instinct MI210", _peaks(22.6, 181)),
    (r"Instinct MI300X|Instinct MI325X", _peaks(163.4, 1307.4, tf32=653.7)),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s specified by the vendor of a device, by its name in PyTorch.

    `precision` is fp32, tf32, bf16 or fp16. None for hardware that is not in the table (such as all CPUs), and for a
    precision without hardware units.
    """
    name = re.sub(r"^((NVIDIA|Tesla|AMD) )+", "", device_name.strip())
    for pattern, peaks in _ACCELERATORS:
        if re.fullmatch(pattern, name):
            return peaks.get(precision)
    return None


def device_name() -> str:
    """Name of this rank's accelerator in PyTorch, or `cpu`."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "cpu"


class Throughput:
    """Tokens per second and MFU over the last steps.

    Durations of steps are summed, so evaluation and checkpoints between them do not count. `peak_flops` is the sum over
    all ranks, `flops_per_token` is for one forward and backward pass; without either there is no MFU.
    """

    def __init__(
        self, window_steps: int = 20, flops_per_token: float | None = None, peak_flops: float | None = None
    ) -> None:
        self._steps: deque[tuple[float, float]] = deque(maxlen=window_steps)
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops

    def count(self, flops_per_token: float) -> None:
        """Measure anew with another cost of a token, as rows of another length have."""
        if flops_per_token != self._flops_per_token:
            self._flops_per_token = flops_per_token
            self._steps.clear()

    def update(self, tokens: float, step_seconds: float, data_wait_seconds: float = 0.0) -> dict[str, float]:
        """Add a step of `tokens` (of all ranks) that took `step_seconds`, including waits; returns its metrics."""
        self._steps.append((tokens, step_seconds))
        metrics = {record.STEP_SECONDS: step_seconds, record.DATA_WAIT_SECONDS: data_wait_seconds}
        seconds = sum(duration for _, duration in self._steps)
        if seconds > 0:
            rate = sum(count for count, _ in self._steps) / seconds
            metrics[record.TOKENS_PER_SECOND] = rate
            if self._flops_per_token and self._peak_flops:
                metrics[record.MFU] = rate * (self._flops_per_token / self._peak_flops)
        return metrics


def memory_metrics() -> dict[str, float]:
    """Resident memory of this process, and on CUDA the peak memory allocated since its start, in bytes."""
    metrics = {record.RSS_BYTES: float(_resident_bytes())}
    if torch.cuda.is_available():
        metrics[record.PEAK_ALLOCATED_BYTES] = float(torch.cuda.max_memory_allocated())
    return metrics


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # not Linux: the peak so far is the closest value available
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
