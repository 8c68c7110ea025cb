"""What ended an attempt: from the exceptions that Ray raises for its workers to a cause for each rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from shardyard.launch.run.recovery import Failure, RankError, bug_in_words, group_causes, is_bug

# Where Ray's exceptions keep what they were raised for, and Python's.
_INSIDE = ("cause", "__cause__")
# What Ray raises for a process that is gone.
_DEATHS = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError)
# What Ray says of a process that cannot become an actor: what it needs is not installed on that host.
_NOT_IMPORTED = re.compile(r"failed to import on the worker|raised in its creation task|failed to unpickle", re.I)


def failure_of(errors: Mapping[int, BaseException], died: Callable[[int, str], str] | None = None) -> Failure:
    """Why an attempt ended, by the error of each worker that failed.

    Args:
        died: describes the death of a rank's process, from its number and Ray's message. Without it the workers had
            no ranks yet, and none is named.
    """
    messages: dict[int, str] = {}
    permanent = False
    for rank, raised in errors.items():
        message, lasting = _understood(raised)
        if message is None:
            message = died(rank, f"{raised}\n{_cause(raised)}") if died is not None else last_line(str(raised))
        messages[rank] = message
        permanent = permanent or lasting
    causes = group_causes(messages)
    return Failure(causes if died is not None else dict.fromkeys(causes, ()), permanent)


def _understood(raised: BaseException) -> tuple[str | None, bool]:
    """The message, None for a process that is gone; and whether the same attempt would fail again."""
    cause = _cause(raised)
    if isinstance(cause, RankError):
        return cause.message, cause.permanent
    if is_bug(cause) or _NOT_IMPORTED.search(str(raised)):
        # It could not report the error itself: what a rank imports is broken or missing there.
        return bug_in_words(last_line(str(raised)), _host(str(raised))), True
    return (None, False) if isinstance(cause, _DEATHS) else (last_line(str(raised)), False)


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "the worker ended without a message"


def _host(text: str) -> str:
    """The address that Ray names in front of what a worker raised."""
    found = re.search(r"\bip=([^,)\s]+)", text)
    return found[1] if found else "the host of the launch"


def _cause(error: BaseException) -> BaseException:
    """The exception that the worker raised, inside the layers that Ray wraps around it."""
    layer: BaseException | None = error
    innermost = error
    seen: set[int] = set()
    # Exceptions that cause each other come round to one that was seen.
    while layer is not None and id(layer) not in seen:
        if isinstance(layer, RankError):
            return layer
        seen.add(id(layer))
        innermost = layer
        inside = (getattr(layer, name, None) for name in _INSIDE)
        layer = next((found for found in inside if isinstance(found, BaseException)), None)
    return innermost
