"""Keeping DeepSpeed from an update after its gradient norm is known, at each ZeRO stage; its private names.

Needed for DeepSpeed 0.19.8, which skips an update only where a norm is not finite, and in fp32 without ZeRO not even
there. `tests/unit/engine/anomalies/test_gate.py` fails where a newer version no longer calls what is replaced here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.utils import combine_grad_norm_groups
from torch import Tensor

from shardyard.engine.mesh import Mesh
from shardyard.engine.parallel.tensor import gradient_norm
from shardyard.replaced import replaced

Refuses = Callable[[float], bool]
"""Called with the norm of the gradient before clipping; whether no update is made."""


class Gate:
    """Lets an update pass or not, once the norm of its gradient is known.

    ZeRO optimizers compute the norm in their step, and drop the gradients if it is not finite: an update that is
    refused has a norm that is not. Without ZeRO the norm is computed before, and the optimizer within does nothing.
    """

    def __init__(self, engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> None:
        self._engine, self._mesh = engine, mesh
        self._refuses: Refuses | None = None
        stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
        if stage in (1, 2):
            whole = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda *given, **named: self._passed(whole(*given, **named))
        elif stage == 3:
            parts = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: self._passed_parts(parts())

    def step(self, refuses: Refuses) -> None:
        """Take DeepSpeed's step at the end of a global batch. DeepSpeed may drop the gradients without asking."""
        if self._engine.zero_optimization_stage():
            self._refuses = refuses
            try:
                self._engine.step()
            finally:
                self._refuses = None
            return
        optimizer = self._engine.optimizer
        half = isinstance(optimizer, FP16_UnfusedOptimizer)
        if refuses(self._plain_norm() / (float(optimizer.loss_scale) if half else 1.0)):
            with replaced(optimizer.optimizer if half else optimizer, "step", lambda *_, **__: None):
                self._engine.step()
        else:
            self._engine.step()

    def _plain_norm(self) -> float:
        if self._mesh.tensor.size > 1:
            return float(gradient_norm(self._engine.module, self._mesh.tensor) or 0.0)
        gradients = [one.grad for one in self._engine.module.parameters() if one.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _passed(self, scaled: Tensor | float) -> Tensor | float:
        """A norm with the loss scale in it, or one that is not finite."""
        if self._refuses is None:
            return scaled
        norm = float(scaled) / float(self._engine.optimizer.loss_scale)
        # DeepSpeed's sign of a norm that is not finite.
        norm = norm if norm >= 0 else math.inf
        if not self._refuses(norm):
            return scaled
        return torch.full_like(scaled, math.inf) if isinstance(scaled, Tensor) else math.inf

    def _passed_parts(self, parts: Any) -> Any:
        if self._refuses is None:
            return parts
        whole = combine_grad_norm_groups(parts)
        return parts if self._passed(whole) is whole else [torch.full_like(whole, math.inf)]


class LossScale:
    """The dynamic loss scale of fp16, put back after a batch that shall leave nothing."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        optimizer = engine.optimizer
        unfused = isinstance(optimizer, FP16_UnfusedOptimizer)
        self._owner = optimizer.loss_scale_config if unfused else getattr(optimizer, "loss_scaler", None)
        self._kept: dict[str, object] = {}

    def remember(self) -> None:
        """Keep its state."""
        self._kept = {} if self._owner is None else dict(vars(self._owner))

    def put_back(self) -> None:
        """Set the state that was kept."""
        if self._owner is not None:
            vars(self._owner).update(self._kept)


def pass_over(engine: deepspeed.DeepSpeedEngine, micro_batches: int) -> None:
    """Count a step for which nothing is computed."""
    engine.micro_steps += micro_batches
    engine.global_steps += 1
    engine.global_samples += engine.train_batch_size()
