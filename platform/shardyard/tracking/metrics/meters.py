"""Meters of speed and memory. Hardware with unknown peak performance reports no MFU instead of a wrong one."""

from __future__ import annotations

import os
import resource
import sys
from collections import deque
from pathlib import Path

import torch

from shardyard.planning.forecast.accelerators import peak_flops
from shardyard.tracking.metrics import record

__all__ = ["Throughput", "device_name", "memory_metrics", "peak_flops"]


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
