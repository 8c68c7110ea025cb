"""Running work on another thread while the main thread handles signals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

WAIT_SECONDS = 0.2


def on_a_thread(
    work: Callable[[], Result],
    name: str,
    while_waiting: Callable[[], None],
    on_interrupt: Callable[[], None] | None = None,
) -> Result:
    """Run `work` on another thread; returns its result or raises its exception.

    Args:
        while_waiting: called on this thread periodically; an exception ends the wait and abandons the thread. Short
            intervals also let Python run signal handlers.
        on_interrupt: called instead of the KeyboardInterrupt that ends the wait.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  raised again on the thread that waits
            errors.append(error)

    thread = threading.Thread(target=attempt, name=name, daemon=True)
    thread.start()
    while thread.is_alive():
        try:
            thread.join(timeout=WAIT_SECONDS)
            if thread.is_alive():
                while_waiting()
        except KeyboardInterrupt:
            if on_interrupt is None:
                raise
            on_interrupt()
    if errors:
        raise errors[0]
    return results[0]
