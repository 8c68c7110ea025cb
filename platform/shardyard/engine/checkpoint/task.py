"""Work beside training: a thread whose result or error is taken later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Task(Generic[Result]):
    """The result of a function that runs in a thread, or at once. A process that ends does not wait for it."""

    def __init__(self, work: Callable[[], Result], *, background: bool) -> None:
        self._work = work
        self._found: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True) if background else None
        if self._thread is None:
            self._run()
        else:
            self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> Result:
        """Wait for the function; returns its result or raises its error."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def _run(self) -> None:
        try:
            self._found.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is taken
            self._error = error
