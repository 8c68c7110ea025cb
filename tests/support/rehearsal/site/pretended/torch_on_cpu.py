"""torch on a device named cuda: tensors sent there stay on the CPU, which computes them."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pretended import cuda


def change(module: ModuleType) -> None:
    """Called right after torch was imported."""
    cuda.change()
    # Its argument is checked before any mode is consulted.
    torch.Tensor.record_stream = lambda tensor, stream: None  # type: ignore[method-assign, assignment]
    OnCpu().__enter__()
    run = threading.Thread.run

    def run_on_cpu(self: threading.Thread) -> None:
        # Modes are per thread.
        with OnCpu():
            run(self)

    threading.Thread.run = run_on_cpu  # type: ignore[method-assign]
    backward = torch.autograd._engine_run_backward

    def backward_on_cpu(*args: Any, **kwargs: Any) -> Any:
        # A mode is disabled while it handles a function, and hooks of DeepSpeed run during that time.
        with OnCpu():
            return backward(*args, **kwargs)

    torch.autograd._engine_run_backward = backward_on_cpu  # type: ignore[attr-defined]
    load = torch.load
    torch.load = lambda file, map_location=None, **options: load(file, _home(map_location), **options)


class OnCpu(TorchFunctionMode):
    """Replaces each CUDA device with the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.device:
            # Shardyard and Ray see a GPU; DeepSpeed compares devices with those of tensors.
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if not caller.startswith("deepspeed"):
                return function(*args, **kwargs)
        if function in _ELSEWHERE:
            return _ELSEWHERE[function](*args, **kwargs)
        if function is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cpu", *args[2:])
        if type(kwargs.get("device")) is int:
            kwargs = {**kwargs, "device": "cpu"}
        if kwargs.get("pin_memory"):
            cuda.USED["pinned"] += 1
            kwargs = {**kwargs, "pin_memory": False}
        return function(*map(_home, args), **{name: _home(value) for name, value in kwargs.items()})


def _home(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if type(value) is str and value.partition(":")[0] == "cuda":
        return "cpu"
    return value


def _pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    cuda.USED["pinned copies"] += 1
    pinned = tensor.clone()
    pinned._is_pinned = True  # type: ignore[attr-defined]
    return pinned


_ELSEWHERE: dict[Any, Any] = {
    torch.Tensor.cuda: lambda tensor, *args, **kwargs: tensor,
    torch.Tensor.pin_memory: _pin,
    torch.Tensor.is_pinned: lambda tensor, device=None: getattr(tensor, "_is_pinned", False),
}
