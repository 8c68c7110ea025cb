"""Transient failures of storage and network: retried with backoff and full jitter, counted, logged."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from gzip import BadGzipFile
from typing import TypeVar

from aiohttp import ClientError
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of what its client raises

log = logging.getLogger(__name__)

Result = TypeVar("Result")

TRANSIENT: tuple[type[Exception], ...] = (OSError, EOFError, ClientError, HTTPError)
# OSErrors that are permanent.
PERMANENT: tuple[type[Exception], ...] = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    BadGzipFile,
)
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0
# The default of data.retry_seconds.
LIMIT_SECONDS = 300.0


_PASSING = (408, 425, 429)


def may_pass(error: BaseException) -> bool:
    """Whether a failure may be gone at the next attempt; what a server refuses (4xx) is not.

    fsspec reports a missing file whatever had failed while it looked for it: then the cause decides.
    """
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return may_pass(error.__cause__)
    if isinstance(error, PERMANENT) or not isinstance(error, TRANSIENT):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return not isinstance(status, int) or not 400 <= status < 500 or status in _PASSING


class Stopped(Exception):  # noqa: N818 - no error: the reader is being closed while it waits
    """The loader is closed while a retry waits."""


def wait_seconds(failures: int) -> float:
    """Pause after the n-th failure in a row (n from 1): random, up to 1, 2, 4, … seconds, at most 30.

    Full jitter, so that many ranks do not retry at the same moment (Brooker 2015, Exponential Backoff and Jitter).
    """
    return random.uniform(0.0, min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(failures - 1, 10)))


@dataclass
class Retry:
    """Retries for `limit_seconds` after the first of several failures in a row."""

    limit_seconds: float = LIMIT_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    def call(self, attempt: Callable[[], Result], what: str) -> Result:
        """The result of `attempt`, which must be safe to repeat after a transient failure.

        Raises:
            Stopped: `stop` is set while waiting.
            Exception: the error of the last attempt; permanent errors are raised immediately.
        """
        failures, deadline = 0, 0.0
        while True:
            try:
                return attempt()
            except TRANSIENT as error:
                if not may_pass(error):
                    raise
                failures += 1
                deadline = deadline or time.monotonic() + self.limit_seconds
                pause = wait_seconds(failures)
                if time.monotonic() + pause > deadline:
                    raise
                self._pause(pause, failures, what, error)

    def _pause(self, seconds: float, failures: int, what: str, error: Exception) -> None:
        self.count += 1
        log.warning("%s: %s: %s; try %d in %.1f s", what, type(error).__name__, error, failures + 1, seconds)
        if self.stop.wait(seconds):
            raise Stopped
