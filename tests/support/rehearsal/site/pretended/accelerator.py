"""DeepSpeed's accelerator: its own for CUDA, without kernels that only a compiler for GPUs could build."""

from __future__ import annotations

from types import ModuleType

import torch


def change(module: ModuleType) -> None:
    """Called when DeepSpeed has just learnt how accelerators are chosen; without GPUs it chooses itself."""
    if not torch.cuda.is_available():
        return
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    class PretendedAccelerator(CUDA_Accelerator):  # type: ignore[misc]
        """Everything of it asks torch.cuda, which answers."""

        def on_accelerator(self, tensor: torch.Tensor) -> bool:
            return True

    module.set_accelerator(PretendedAccelerator())
