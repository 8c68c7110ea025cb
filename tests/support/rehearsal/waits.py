"""Finds where the host waits for a simulated GPU: reads of its tensors, and copies that are not asynchronous.

All tensors of the rehearsal are in host memory. A tensor counts as the host's if a function made it from no tensor of
the GPU and was not told to put it there; all others, such as weights and gradients, are the GPU's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pretended import cuda  # type: ignore[import-not-found]
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# Their result, or its size, depends on values.
_READS = {
    *(_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten.equal.default),
    *(_aten._unique2.default, _aten.unique_dim.default, _aten.bincount.default, _aten.repeat_interleave.Tensor),
}
_TO_HOST: set[Any] = {Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__}
_FROM_VALUES: set[Any] = {torch.tensor, torch.as_tensor}
# Whose code is named; frames of torch are not.
_PACKAGES = ("shardyard", "deepspeed", "transformers", "peft")


@dataclass
class Waits:
    """What was found. `step`: of the run, for what follows; `found`: step → kind and place of each wait."""

    step: int = 0
    found: dict[int, list[str]] = field(default_factory=dict)

    def add(self, kind: str) -> None:
        """Count one here."""
        self.found.setdefault(self.step, []).append(f"{kind} in {_place()}")


@contextmanager
def watching() -> Iterator[Waits]:
    """The waits of the code inside, of this thread."""
    waits, local = Waits(), threading.local()
    synchronize = cuda.Event.synchronize
    cuda.Event.synchronize = lambda event: waits.add("event")
    try:
        with _Values(waits, local), _Places(waits, local):
            yield waits
    finally:
        cuda.Event.synchronize = synchronize


def mark_host(value: Any) -> Any:
    """Say that tensors are the host's."""
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor):
            tensor._on_host = True  # type: ignore[attr-defined]
    return value


def _on_host(tensor: Tensor) -> bool:
    return getattr(tensor, "_on_host", False)


class _Places(TorchFunctionMode):
    """Sees the devices that functions are given, before the rehearsal replaces them."""

    def __init__(self, waits: Waits, local: threading.local) -> None:
        super().__init__()
        self._waits, self._local = waits, local

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.device:
            # The rehearsal looks at who calls.
            return (
                function("cpu") if sys._getframe(1).f_globals["__name__"].startswith("deepspeed") else function(*args)
            )
        first = args[0] if args and isinstance(args[0], Tensor) else None
        # Who makes a tensor beside another one names the other's device, which is the CPU's here.
        beside = first is None and kwargs.get("device") is not None
        to_gpu = beside or function is Tensor.cuda or any(map(_is_gpu, (*args[:2], kwargs.get("device"))))
        if first is not None and function in _TO_HOST and not _on_host(first):
            self._waits.add("copy to the host")
            return mark_host(self._called(function, args, kwargs, to_gpu=False))
        if function is Tensor.copy_ and _on_host(args[0]) and not _on_host(args[1]):
            if not (kwargs.get("non_blocking") and args[0].is_pinned()):
                self._waits.add("copy to the host")
            return mark_host(self._called(function, args, kwargs, to_gpu=False))
        if to_gpu and (function in _FROM_VALUES or (first is not None and _on_host(first))):
            pinned = first is not None and first.is_pinned() and kwargs.get("non_blocking")
            if not pinned:
                self._waits.add("copy from memory that is not pinned")
        result = self._called(function, args, kwargs, to_gpu=to_gpu)
        if to_gpu and isinstance(result, Tensor) and _on_host(result):
            result = self._called(Tensor.view_as, (result, result), {}, to_gpu=True)
        if kwargs.get("pin_memory"):
            result._is_pinned = True
        return result

    def _called(self, function: Callable[..., Any], args: Any, kwargs: Any, *, to_gpu: bool) -> Any:
        before = getattr(self._local, "to_gpu", False)
        self._local.to_gpu = to_gpu or before
        try:
            return function(*args, **kwargs)
        finally:
            self._local.to_gpu = before


class _Values(TorchDispatchMode):
    """Sees the operations, and where their results are."""

    def __init__(self, waits: Waits, local: threading.local) -> None:
        super().__init__()
        self._waits, self._local = waits, local

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)]
        on_gpu = any(not _on_host(one) for one in given)
        if on_gpu and (func in _READS or (func is _aten.index.Tensor and _by_mask(args))):
            self._waits.add(func.__name__.partition(".")[0].strip("_"))
        result = func(*args, **(kwargs or {}))
        if not on_gpu and not getattr(self._local, "to_gpu", False):
            return mark_host(result)
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                one._on_host = False  # type: ignore[attr-defined]
        return result


def _by_mask(args: Any) -> bool:
    return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])


def _is_gpu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return type(value) is str and value.partition(":")[0] == "cuda"


def _place() -> str:
    """File and function of the nearest frame that is not torch's or this file's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        parts = frame.f_code.co_filename.split("/")
        package = next((name for name in _PACKAGES if name in parts), None)
        if package is not None:
            return f"{'/'.join(parts[parts.index(package) :])}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
