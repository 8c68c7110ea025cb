"""Work of several ranks together: an error of one is raised on all, and none waits in a collective for a slow one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from shardyard.errors import ShardyardError
from shardyard.models.weight_source import Ranks

T = TypeVar("T")


def agreed(ranks: Ranks, action: Callable[[], T]) -> T:
    """Do something on this rank, while the others do the same or nothing; all of them call this.

    Raises:
        OSError, ShardyardError: on all ranks, if one of them could not do it.
    """
    result, problem = _tried(action)
    _raise_first(ranks.gather(problem))
    assert result is not None or problem is None
    return result  # type: ignore[return-value]


def until_all(ranks: Ranks, is_done: Callable[[], bool]) -> None:
    """Wait until all ranks are done; all of them call this.

    Ranks meet again and again, so that nobody waits in a collective for longer than one call of `is_done` takes.

    Args:
        is_done: waits a moment at most.

    Raises:
        OSError, ShardyardError: on all ranks, if one of them has failed.
    """
    while True:
        met = ranks.gather(_tried(is_done))
        _raise_first([problem for _, problem in met])
        if all(done for done, _ in met):
            return


def _tried(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except (OSError, ShardyardError) as error:
        return None, error


def _raise_first(problems: list[Exception | None]) -> None:
    for problem in problems:
        if problem is not None:
            raise problem
