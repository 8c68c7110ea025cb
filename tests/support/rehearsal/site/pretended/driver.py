"""The interfaces of the GPU driver: files in /dev, and NVML, with which Ray counts GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

COUNT = int(os.environ.get("REHEARSAL_GPUS", "0"))
NAME = os.environ.get("REHEARSAL_NAME", "")
MEMORY_BYTES = 80 * 1024**3
# The compute capability, from which programs derive the units of a GPU.
CAPABILITY = (7, 0) if "V100" in NAME else (9, 0)


def show_devices() -> None:
    """Let `Path("/dev").glob("nvidia…")` find them. Real files in /dev would be visible to all processes."""
    glob = Path.glob

    def with_devices(self: Path, pattern: str, **options: Any) -> Iterator[Path]:
        if str(self) == "/dev" and pattern.startswith("nvidia"):
            return iter([Path(f"/dev/nvidia{index}") for index in range(COUNT)])
        return glob(self, pattern, **options)

    Path.glob = with_devices  # type: ignore[method-assign, assignment]


def change(pynvml: ModuleType) -> None:
    """Patch Ray's copy of NVML's Python interface."""
    answers: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: COUNT,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: NAME,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=MEMORY_BYTES, used=2**30, free=79 * 2**30),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=42, memory=7),
        "nvmlDeviceGetPowerUsage": lambda handle: 250_000,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 55,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
        "nvmlDeviceGetGraphicsRunningProcesses": lambda handle: [],
        "nvmlSystemGetDriverVersion": lambda: "580.0",
    }
    for name, answer in answers.items():
        setattr(pynvml, name, answer)
