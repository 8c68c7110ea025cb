"""Shardyard: train large language models on many machines from one YAML recipe.

The public API is `load_recipe`, `plan`, `launch`, `resume`, `submit` and `Run`, described in docs/api.md. Importing the
package imports none of what they need; each name does when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardyard.errors import ShardyardError as ShardyardError
    from shardyard.launch.api import Run as Run
    from shardyard.launch.api import SubmittedJob as SubmittedJob
    from shardyard.launch.api import launch as launch
    from shardyard.launch.api import load_recipe as load_recipe
    from shardyard.launch.api import plan as plan
    from shardyard.launch.api import resume as resume
    from shardyard.launch.api import submit as submit
    from shardyard.launch.run.stop import Stop as Stop

__version__ = "0.1.0"
__all__ = ["Run", "ShardyardError", "Stop", "SubmittedJob", "launch", "load_recipe", "plan", "resume", "submit"]

_API = "shardyard.launch.api"
# Where each name is found.
_HOMES = {
    "Run": _API,
    "ShardyardError": "shardyard.errors",
    "Stop": "shardyard.launch.run.stop",
    "SubmittedJob": _API,
    "load_recipe": _API,
    "plan": _API,
    "resume": _API,
    "submit": _API,
}


def __getattr__(name: str) -> Any:
    if name == "launch":
        # The room of this name is callable, so that it does not matter which of the two is found first.
        return importlib.import_module("shardyard.launch")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
