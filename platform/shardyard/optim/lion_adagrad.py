"""Optimizers that DeepSpeed lacks for partitions on the device. All work element-wise, as flat partitions require.

Lion: DeepSpeed only has kernels for CUDA and for offloading. Adagrad: ZeRO 1 and 2 rebuild torch's version from one
list of partitions and so lose the parameter groups; they keep an optimizer that allocates its state at the first step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from shardyard.optim.eight_bits import adamw_8bit
from shardyard.recipe.schema import Optimizer as Settings
from shardyard.recipe.sections.eight_bits import EIGHT_BITS


class Elementwise(Optimizer):
    """Updates every parameter that has a gradient; state is allocated at the first step."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        assert closure is None, "DeepSpeed calls step() without a closure"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["buffer"] = torch.zeros_like(parameter)
                    self._update(parameter, parameter.grad, state["buffer"], group)

    @abstractmethod
    def _update(self, parameter: Tensor, gradient: Tensor, buffer: Tensor, group: Any) -> None:
        """Update `parameter` and `buffer` in place; all three tensors have the same shape."""


class LionGroup(TypedDict):
    """Settings of a parameter group of Lion."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float


class AdagradGroup(TypedDict):
    """Settings of a parameter group of Adagrad."""

    lr: float
    eps: float
    weight_decay: float


class Lion(Elementwise):
    """Evolved sign momentum (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2).

    c = β1·m + (1 - β1)·g;  w ← w - lr·(sign(c) + λ·w);  m ← β2·m + (1 - β2)·g
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _update(self, parameter: Tensor, gradient: Tensor, buffer: Tensor, group: LionGroup) -> None:
        beta1, beta2 = group["betas"]
        update = buffer.lerp(gradient, 1 - beta1).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        buffer.lerp_(gradient, 1 - beta2)


class Adagrad(Elementwise):
    """Adaptive gradients (Duchi et al. 2011), like torch.optim.Adagrad without its learning-rate decay.

    g ← g + λ·w;  s ← s + g²;  w ← w - lr·g / (√s + ε)
    """

    def __init__(self, params: Any, lr: float, eps: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})

    def _update(self, parameter: Tensor, gradient: Tensor, buffer: Tensor, group: AdagradGroup) -> None:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        buffer.addcmul_(gradient, gradient)
        parameter.addcdiv_(gradient, buffer.sqrt().add_(group["eps"]), value=-group["lr"])


def client_optimizer(settings: Settings, device: torch.device) -> Callable[[Any], Optimizer]:
    """A function from parameter groups to the optimizer that the recipe names: Lion, Adagrad, or AdamW in 8 bits."""
    if settings.name in EIGHT_BITS:
        return lambda groups: adamw_8bit(groups, settings, device)
    if settings.name == "lion":
        betas = (settings.betas[0], settings.betas[1])
        return lambda groups: Lion(groups, lr=settings.lr, betas=betas, weight_decay=settings.weight_decay)
    assert settings.name == "adagrad", settings.name
    return lambda groups: Adagrad(groups, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay)
