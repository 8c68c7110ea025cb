"""Parameter groups: which weights get weight decay, and which another learning rate."""

from __future__ import annotations

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, lr_of_b: float | None = None) -> list[dict[str, object]]:
    """Two groups: matrices with weight decay, norms and biases (everything with fewer than two axes) without.

    With a learning rate of its own for the B of adapters (LoRA+, Hayou et al. 2024), these form a third group. As in
    peft, all parameters with one axis have the same rate.

    DeepSpeed distinguishes the groups by name when it moves experts into separate groups. Under ZeRO-3 a parameter is
    partitioned and flat, so its original shape decides.
    """
    decayed: list[nn.Parameter] = []
    faster: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if len(_shape(parameter)) < 2:
            others.append(parameter)
        elif lr_of_b is not None and ".lora_B." in name:
            faster.append(parameter)
        else:
            decayed.append(parameter)
    rate: dict[str, object] = {} if lr_of_b is None else {"lr": lr_of_b}
    groups: list[dict[str, object]] = [
        {"name": "decayed", "params": decayed, "weight_decay": weight_decay},
        {"name": "faster", "params": faster, "weight_decay": weight_decay, **rate},
        {"name": "others", "params": others, "weight_decay": 0.0, **rate},
    ]
    return [group for group in groups if group["params"]]


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
