"""Running a sweep from the command line: its output and its signals."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from shardyard.cli.view import output
from shardyard.errors import EXIT_INTERRUPTED
from shardyard.launch.run.end_children import end_children
from shardyard.launch.run.output import Terminal
from shardyard.launch.run.signals import CODES, take_signals
from shardyard.launch.run.threads import on_a_thread
from shardyard.launch.sweep.folder import SweepFolder
from shardyard.tracking.run.folder import now_text, typed

# Time limit for Tune to end after all trials have ended.
REST_SECONDS = 30.0


def carry_out(folder: SweepFolder, address: str | None, *, quiet: bool) -> tuple[str, int]:
    """Run the sweep; returns its state and the exit code."""
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    terminal = Terminal(folder.logs / "driver.log")

    def report(text: str) -> None:
        if not quiet:
            terminal.stream.write(f"{text}\n")

    try:
        report(f"sweep {folder.id}")
        with _signals(folder, report) as code:
            state = _driven(folder, report)
    finally:
        terminal.restore()
    if state is None:
        _leave_ray(folder, code())
    return state, code() if state == "stopped" else 0


class _GivenUpError(Exception):
    """All trials have stopped, but Ray Tune does not end."""


def _driven(folder: SweepFolder, report: Callable[[str], None]) -> str | None:
    """Run Ray Tune on another thread, because on the main thread it would handle Ctrl-C. None if it had to be
    abandoned."""
    # Imported late, after the redirection of the output, because importing DeepSpeed prints messages.
    from shardyard.launch.sweep.sweep import drive_sweep

    at_rest = _at_rest(folder)

    def give_up() -> None:
        if at_rest():
            raise _GivenUpError

    try:
        return on_a_thread(lambda: drive_sweep(folder, report), "shardyard-sweep", give_up)
    except _GivenUpError:
        return None


def _at_rest(folder: SweepFolder) -> Callable[[], bool]:
    """Whether a stop of the sweep was requested and all its runs stopped some time ago, but Tune still waits.

    A scheduler that sends SIGTERM to all processes of a job also ends Ray's daemons; Tune then waits for them forever.
    """
    looked: list[float] = []

    def given_up() -> bool:
        now = time.monotonic()
        if not folder.stop_requested() or (looked and now - looked[0] < REST_SECONDS):
            return False
        # The grace period for running work before the first check.
        over = bool(looked) and not folder.training()
        looked[:] = [now]
        return over

    return given_up


def _leave_ray(folder: SweepFolder, code: int) -> NoReturn:
    """Exit without shutting down Ray, which would block the exit of the process too."""
    folder.update(state="stopped", ended=now_text())
    folder.write_table()
    output.note(f"Ray went away; all trials have stopped. Go on with `shardyard sweep resume {typed(folder.path)}`.")
    end_children()
    sys.stdout.flush()
    os._exit(code)


@contextmanager
def _signals(folder: SweepFolder, report: Callable[[str], None]) -> Iterator[Callable[[], int]]:
    """Handle signals: the first one stops all trials with a checkpoint, a second Ctrl-C exits immediately."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            _end_at_once(folder)
        # Ray's SIGTERM handler, which runs before this one, has set an alarm that would abort the process in 3 s.
        signal.alarm(0)
        received.append(number)
        folder.request_stop()
        report("Stopping all trials after this step, with checkpoints. Ctrl-C again ends at once, without them.")

    before = take_signals(handle)
    try:
        yield lambda: CODES[received[0]] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _end_at_once(folder: SweepFolder) -> None:

    folder.update(state="stopped")
    end_children()
    os._exit(EXIT_INTERRUPTED)
