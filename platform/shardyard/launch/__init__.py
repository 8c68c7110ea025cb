"""Runs, jobs, schedulers, Ray and sweeps. The module is callable: it launches a recipe (see `launch.api`)."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect import Signature


class _CallablePackage(ModuleType):
    """The package as a function. Once one of its modules is imported, Python binds the package to `shardyard.launch`,
    replacing any other value, so `from shardyard import launch` gives the package. It is also the public function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from shardyard.launch.api import launch

        return launch(*arguments, **options)

    @property
    def __signature__(self) -> Signature:
        from inspect import signature

        from shardyard.launch.api import launch

        return signature(launch)


sys.modules[__name__].__class__ = _CallablePackage
