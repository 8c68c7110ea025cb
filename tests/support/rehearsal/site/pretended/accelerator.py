"""DeepSpeed's CUDA accelerator, without kernels that only a GPU compiler could build."""

from __future__ import annotations

from types import ModuleType

import torch


def change(module: ModuleType) -> None:
    """Called when DeepSpeed's selection of accelerators has been imported; without GPUs it is unchanged."""
    if not torch.cuda.is_available():
        return
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    class PretendedAccelerator(CUDA_Accelerator):  # type: ignore[misc]
        """All methods use torch.cuda, which is simulated."""

        def on_accelerator(self, tensor: torch.Tensor) -> bool:
            return True

    module.set_accelerator(PretendedAccelerator())
