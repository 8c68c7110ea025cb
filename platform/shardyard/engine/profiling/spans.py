"""Named parts of a step in the profiler's trace; they cost nothing while no step is profiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch.profiler import record_function

# Precedes the names in the trace.
PREFIX = "shardyard."
STEP = "step"
_state = {"recording": False}


def span(name: str) -> AbstractContextManager[object]:
    """Context whose time has this name in the trace."""
    return record_function(f"{PREFIX}{name}") if _state["recording"] else nullcontext()


@contextmanager
def recording() -> Iterator[None]:
    """Context in which spans are recorded."""
    _state["recording"] = True
    try:
        yield
    finally:
        _state["recording"] = False
