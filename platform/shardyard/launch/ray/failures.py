"""The cause of a failed attempt: from Ray's exceptions to a cause per rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from shardyard.launch.run.recovery import Failure, RankError, bug_in_words, group_causes, is_bug

# Attributes in which Ray's and Python's exceptions keep their causes.
_INSIDE = ("cause", "__cause__")
# Ray's exceptions for a dead process.
_DEATHS = (RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError)
# Ray's messages for an actor that cannot be created because a package is missing on that host.
_NOT_IMPORTED = re.compile(r"failed to import on the worker|raised in its creation task|failed to unpickle", re.I)


def failure_of(errors: Mapping[int, BaseException], died: Callable[[int, str], str] | None = None) -> Failure:
    """The failure of an attempt, from the error of each failed worker.

    Args:
        died: describes the death of a rank's process, from its number and Ray's message. If None, the workers had no
            ranks yet.
    """
    messages: dict[int, str] = {}
    permanent = False
    rollback = any(isinstance(cause := _cause(raised), RankError) and cause.rollback for raised in errors.values())
    for rank, raised in errors.items():
        message, lasting = _understood(raised)
        if message is None:
            message = died(rank, f"{raised}\n{_cause(raised)}") if died is not None else last_line(str(raised))
        messages[rank] = message
        permanent = permanent or lasting
    causes = group_causes(messages)
    return Failure(causes if died is not None else dict.fromkeys(causes, ()), permanent and not rollback, rollback)


def _understood(raised: BaseException) -> tuple[str | None, bool]:
    """The message, None for a dead process; and whether the same attempt would fail again."""
    cause = _cause(raised)
    if isinstance(cause, RankError):
        return cause.message, cause.permanent
    if is_bug(cause) or _NOT_IMPORTED.search(str(raised)):
        # The worker could not report the error itself: an import is broken or missing there.
        return bug_in_words(last_line(str(raised)), _host(str(raised))), True
    return (None, False) if isinstance(cause, _DEATHS) else (last_line(str(raised)), False)


def last_line(text: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "the worker ended without a message"


def _host(text: str) -> str:
    """The address in Ray's message about a worker."""
    found = re.search(r"\bip=([^,)\s]+)", text)
    return found[1] if found else "the host of the launch"


def _cause(error: BaseException) -> BaseException:
    """The worker's exception, unwrapped from Ray's."""
    layer: BaseException | None = error
    innermost = error
    seen: set[int] = set()
    # Exceptions may form a cycle of causes.
    while layer is not None and id(layer) not in seen:
        if isinstance(layer, RankError):
            return layer
        seen.add(id(layer))
        innermost = layer
        inside = (getattr(layer, name, None) for name in _INSIDE)
        layer = next((found for found in inside if isinstance(found, BaseException)), None)
    return innermost
