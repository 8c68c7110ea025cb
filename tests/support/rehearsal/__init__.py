"""Simulated GPUs: the environment in which every process of a test, including Ray's workers, sees them.

`site/` goes to the front of PYTHONPATH, where each Python imports its `sitecustomize`. It patches torch, Ray, DeepSpeed
and the driver's files, but nothing of Shardyard, which is unaware of it. Tensors are in host memory and computed by the
CPU; collectives of the backend `nccl` are gloo's.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path

SITE = Path(__file__).with_name("site")
H100 = "NVIDIA H100 80GB HBM3"


def environment(gpus: int, lines: Path | None = None, *, name: str = H100) -> dict[str, str]:
    """Variables for a process that should see this many GPUs.

    Args:
        lines: a folder for files that record which lines of Shardyard run.
        name: of each GPU. One without bf16 units, such as a V100, reports that.
    """
    found = {"REHEARSAL_GPUS": str(gpus), "REHEARSAL_NAME": name, "DISABLE_PYNVML": "1"}
    if lines is not None:
        lines.mkdir(parents=True, exist_ok=True)
        found["REHEARSAL_LINES"] = str(lines)
    # A test that has imported the engine has selected the CPU for itself; an empty value removes that.
    found["DS_ACCELERATOR"] = ""
    # DeepSpeed's extensions for offloading run on the host: the same as without GPUs, built once for both.
    found["TORCH_EXTENSIONS_DIR"] = os.environ.get("TORCH_EXTENSIONS_DIR") or str(_built_for_cpu())
    path = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    # nvidia-smi is beside sitecustomize.
    return found | {"PYTHONPATH": os.pathsep.join(path), "PATH": f"{SITE}{os.pathsep}{os.environ['PATH']}"}


def _built_for_cpu() -> Path:
    """The folder of torch's extensions for a build without CUDA (`torch.utils.cpp_extension`)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "torch_extensions" / f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}_cpu"


def lines_run(folder: Path) -> dict[str, set[int]]:
    """File of Shardyard, relative to the package → lines that ran in any process."""
    found: dict[str, set[int]] = defaultdict(set)
    for part in sorted(folder.glob("*.lines")):
        for line in part.read_text().splitlines():
            name, _, number = line.rpartition(":")
            found[name].add(int(number))
    return found
