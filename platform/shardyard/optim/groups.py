"""Parameter groups: which weights get weight decay."""

from __future__ import annotations

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: matrices with weight decay, norms and biases (everything with fewer than two axes) without.

    DeepSpeed distinguishes the groups by name when it moves experts into separate groups. Under ZeRO-3 a parameter is
    partitioned and flat, so its original shape decides.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if len(_shape(parameter)) >= 2 else others).append(parameter)
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": weight_decay},
        {"name": "others", "params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
