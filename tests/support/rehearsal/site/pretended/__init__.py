"""Patches that simulate GPUs in a process, applied as soon as the patched module is imported."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

# Module → module here whose `change` is called with it. None of them is imported before.
_AFTER = {
    "torch": "torch_on_cpu",
    "torch.distributed.distributed_c10d": "nccl",
    "deepspeed.accelerator.real_accelerator": "accelerator",
    "ray._private.thirdparty.pynvml": "driver",
}

# `torch.set_num_threads`: to be removed in a Ray worker, to simulate a bug.
_WITHOUT = [
    name for name in os.environ.get("REHEARSAL_WITHOUT", "").split(",") if "default_worker.py" in str(sys.orig_argv)
]


def begin() -> None:
    """Called once by each process, before anything else is imported."""
    from pretended import driver

    if not os.environ.get("DS_ACCELERATOR", "unset"):
        del os.environ["DS_ACCELERATOR"]
    driver.show_devices()
    sys.meta_path.insert(0, _Finder())
    if folder := os.environ.get("REHEARSAL_LINES"):
        from pretended import lines

        lines.record(folder)


class _Finder(importlib.abc.MetaPathFinder):
    """Leaves finding to other finders, and patches the modules that they load."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _AFTER:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    _watch(spec.loader, _AFTER[name])
                return spec
        return None


def _watch(loader: importlib.abc.Loader, change: str) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        importlib.import_module(f"pretended.{change}").change(module)
        for name in _WITHOUT:
            if name.rpartition(".")[0] == module.__name__:
                delattr(module, name.rpartition(".")[2])

    loader.exec_module = exec_module  # type: ignore[method-assign]
