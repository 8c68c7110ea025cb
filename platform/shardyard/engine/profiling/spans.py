"""Named parts of a step: in the rank's beat, and in the profiler's trace while steps are profiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch.profiler import record_function

from shardyard.tracking.watch.beat import BEAT

# Precedes the names in the trace.
PREFIX = "shardyard."
STEP = "step"
_state = {"recording": False}


def span(name: str) -> AbstractContextManager[object]:
    """Context whose time has this name in the beat and the trace."""
    if not _state["recording"]:
        return BEAT.part(name)
    both = ExitStack()
    both.enter_context(BEAT.part(name))
    both.enter_context(record_function(f"{PREFIX}{name}"))
    return both


def whole_step() -> AbstractContextManager[object]:
    """Context of a profiled step in the trace."""
    return record_function(f"{PREFIX}{STEP}")


@contextmanager
def recording() -> Iterator[None]:
    """Context in which spans are recorded."""
    _state["recording"] = True
    try:
        yield
    finally:
        _state["recording"] = False
