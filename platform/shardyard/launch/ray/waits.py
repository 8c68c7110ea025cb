"""Waiting for the answers of several workers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray

T = TypeVar("T")

STOP_POLL_SECONDS = 1.0
# Ranks that lose a peer fail a moment later: usually the first failed rank is not the only one to report a cause.
GATHER_SECONDS = 2.0


@dataclass
class Answers(Generic[T]):
    """Results and exceptions of workers, by their numbers."""

    values: dict[int, T] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)


def gather(
    calls: Sequence[Any],
    *,
    limit: float | None = None,
    stopped: Callable[[], bool] | None = None,
    look: Callable[[], None] | None = None,
) -> Answers[Any]:
    """The results of calls, in order of completion: all of them, or those that end soon after one has failed.

    Args:
        limit: seconds after which the wait ends.
        stopped: checked every second; once it is true, the wait ends.
        look: called every second until a call has failed; what it raises ends the wait too.
    """
    answers: Answers[Any] = Answers()
    number = {call: index for index, call in enumerate(calls)}
    until = None if limit is None else time.monotonic() + limit
    while number:
        left = None if until is None else max(0.0, until - time.monotonic())
        poll = left if stopped is None and look is None else min(STOP_POLL_SECONDS, math.inf if left is None else left)
        ended, _ = ray.wait(list(number), timeout=poll)
        if not ended and (poll == left or (stopped is not None and stopped())):
            break
        if look is not None and not answers.errors:
            look()
        for call in ended:
            index = number.pop(call)
            try:
                answers.values[index] = ray.get(call)
            except Exception as error:  # noqa: BLE001  whatever a worker raises comes as it is
                if not answers.errors:
                    until = time.monotonic() + GATHER_SECONDS
                answers.errors[index] = error
    return answers
