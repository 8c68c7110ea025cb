"""Waiting for a state, never for a fixed time: the only module of the tests that sleeps.

Limits only end hanging tests and do not measure durations, so they are generous: on a slow machine that does other
work, Ray alone takes a minute to start.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 300.0
_LONGEST_PAUSE_SECONDS = 1.0
# A value that stays the same over this many reads has settled.
_LOOKS = 8


def until(
    condition: Callable[[], T],
    what: str | Callable[[], object],
    *,
    seconds: float = PATIENCE_SECONDS,
    every: float = 0.05,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """The value of a condition once it is true; fails with `what` (a description or a function) if it never is.

    Checks are `every` seconds apart, or more after a slow check, so that checking does not slow down the awaited work.
    `pause` replaces `time.sleep`: browser pages have their own.
    """
    end = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if found := condition():
            return found
        ended = time.monotonic()
        if ended > end:
            raise AssertionError(f"after {seconds:.0f} s still not: {what() if callable(what) else what}")
        pause(max(every, min(_LONGEST_PAUSE_SECONDS, 10 * (ended - began))))


def settled(read: Callable[[], T], what: str, *, pause: Callable[[float], None] = time.sleep) -> T:
    """The result of `read` once it no longer changes."""
    last, looks = read(), 0

    def same() -> bool:
        nonlocal last, looks
        now = read()
        last, looks = now, looks + 1 if now == last else 0
        return looks >= _LOOKS

    until(same, f"{what} settles", pause=pause)
    return last


def next_second() -> None:
    """Wait until the next second: W&B names its folders by the second."""
    now = int(time.time())
    until(lambda: int(time.time()) > now, "the next second")


def read_until(terminal: int, enough: Callable[[str], object], seconds: float = PATIENCE_SECONDS) -> str:
    """The output of a terminal until `enough` holds, or until its other end is closed."""
    seen = b""

    def read() -> object:
        nonlocal seen
        while select.select([terminal], [], [], 0)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other end has been closed
                return True
            if not data:
                return True
            seen += data
            if enough(seen.decode(errors="replace")):
                return True
        return False

    until(read, lambda: seen.decode(errors="replace")[-3000:], seconds=seconds)
    return seen.decode(errors="replace")
