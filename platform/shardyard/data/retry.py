"""Transient failures of storage and network: tried again with exponential backoff and jitter, counted and logged."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import ClientError
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of what its client raises

log = logging.getLogger(__name__)

Result = TypeVar("Result")

TRANSIENT: tuple[type[Exception], ...] = (OSError, EOFError, ClientError, HTTPError)
# OSErrors that a second try does not mend.
PERMANENT: tuple[type[Exception], ...] = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class Stopped(Exception):  # noqa: N818 - no error: the reader is being closed while it waits
    """The loader is closed while a try waits for its turn."""


@dataclass
class Retry:
    """At most `tries` tries; before try n+1 it waits `first_seconds` · 2^(n-1), at most `longest_seconds`, halved or
    more by jitter so that many ranks do not come back at the same moment."""

    tries: int = 6
    first_seconds: float = 1.0
    longest_seconds: float = 30.0
    stop: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    def wait_seconds(self, failures: int) -> float:
        """Pause after the n-th failure in a row (n from 1), in seconds."""
        longest = min(self.longest_seconds, self.first_seconds * 2.0 ** (failures - 1))
        return longest * random.uniform(0.5, 1.0)

    def call(self, attempt: Callable[[], Result], what: str) -> Result:
        """The result of `attempt`, which must be safe to repeat after a transient failure.

        Raises:
            Stopped: `stop` is set while waiting.
            Exception: whatever the last try raises, and at once what is not transient.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except PERMANENT:
                raise
            except TRANSIENT as error:
                failures += 1
                if failures >= self.tries:
                    raise
                self._pause(failures, what, error)

    def _pause(self, failures: int, what: str, error: Exception) -> None:
        seconds = self.wait_seconds(failures)
        self.count += 1
        log.warning(
            "%s: %s: %s; try %d of %d in %.1f s", what, type(error).__name__, error, failures + 1, self.tries, seconds
        )
        if self.stop.wait(seconds):
            raise Stopped
