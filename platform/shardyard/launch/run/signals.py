"""Handling of Ctrl-C, SIGTERM and SIGHUP in a training process, from its start to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from shardyard.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, ShardyardError
from shardyard.launch.run.end_children import end_children
from shardyard.launch.run.stop import Stop
from shardyard.tracking.run.events import Attempt, EventTail
from shardyard.tracking.run.folder import RunFolder, StopReason, typed
from shardyard.tracking.run.info import State

# A hanging disk must not prevent a second Ctrl-C from ending the process.
LAST_WORD_SECONDS = 2.0
# A closing terminal sends SIGHUP: the user ends its programs.
_REASONS: dict[int, StopReason] = {
    signal.SIGINT: "interrupt",
    signal.SIGHUP: "interrupt",
    signal.SIGTERM: "preempt",
}
_STATES: dict[int, State] = {
    signal.SIGINT: "interrupted",
    signal.SIGHUP: "interrupted",
    signal.SIGTERM: "preempted",
}
CODES: dict[int, int] = {
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGHUP: EXIT_INTERRUPTED,
    signal.SIGTERM: EXIT_PREEMPTED,
}
_WHO = {
    signal.SIGINT: ("Stopping", "Ctrl-C again"),
    signal.SIGHUP: ("The terminal has closed (SIGHUP): stopping", "Ctrl-C"),
    signal.SIGTERM: ("SIGTERM received: stopping", "Ctrl-C"),
}


class StoppedError(BaseException):
    """Raised by a signal before training starts. A BaseException, so that only `stoppable` catches it."""


class StopSignals:
    """Handles SIGINT (a person), SIGHUP (a closing terminal) and SIGTERM (a scheduler).

    Before training starts they end the command. During training the first one requests a stop with a checkpoint; a
    second Ctrl-C ends immediately. After training they are ignored, so that the final work completes.

    first_signal: the first received signal.
    stop: the stop signal to which the run is bound.
    """

    def __init__(self) -> None:
        self.first_signal: int | None = None
        self.stop = Stop()
        self.cut_short = False
        self._folder: RunFolder | None = None
        self._report: Callable[[str], None] | None = None
        self._begun = 0
        self._held = self._over = False

    def install(self) -> dict[int, object]:
        """Install the handlers; returns the previous ones."""
        return take_signals(self._handle)

    def install_again(self) -> None:
        """Install the handlers again if they were replaced."""
        self.install()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Delay signals until the block is done, for work that must not be left incomplete."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._check()

    def attach(self, folder: RunFolder) -> None:
        """Apply signals to this run from now on."""
        self._folder = folder

    @contextlib.contextmanager
    def driving(self, folder: RunFolder, report: Callable[[str], None]) -> Iterator[None]:
        """During training: turn signals into stop requests, and `report` their effect."""
        self._folder, self._begun = folder, _size(folder)
        self._report = report
        self.stop.bind(folder)
        self._check()
        try:
            yield
        finally:
            self._report, self._over = None, True

    def settle(self) -> int:
        """Report how an interrupted command ended, and return its exit code."""
        assert self.first_signal is not None
        state = _STATES[self.first_signal]
        after = ""
        if self._folder is not None:
            with contextlib.suppress(ShardyardError):
                if self._folder.state in ("pending", "running"):
                    self._folder.update(state=state, waiting=None)
            after = f" `shardyard resume {typed(self._folder.path)}` trains it."
        note(f"{state.capitalize()} before training began.{after}")
        return CODES[self.first_signal]

    def note_failure(self) -> None:
        """Mark a run that was created but never started as failed."""
        if self._folder is not None:
            with contextlib.suppress(ShardyardError):
                if self._folder.state == "pending":
                    self._folder.update(state="failed", waiting=None)

    def _handle(self, number: int, frame: object) -> None:
        # If Ray's SIGTERM handler ran first, it has set an alarm that aborts the process after 3 s.
        signal.alarm(0)
        if self._report is not None and self.first_signal is not None and number == signal.SIGINT:
            self._end_at_once()
        first = self.first_signal is None
        self.first_signal = self.first_signal or number
        if self._report is not None:
            self._ask(first)
        elif not (self._held or self._over):
            self._check()

    def _check(self) -> None:
        if self.first_signal is None:
            return
        if self._report is not None:
            self._ask(first=True)
            return
        self.cut_short = True
        raise StoppedError

    def _ask(self, first: bool) -> None:
        assert self._folder is not None
        assert self._report is not None
        assert self.first_signal is not None
        problem = ""
        try:
            self.stop.request(_REASONS[self.first_signal])
        except ShardyardError as error:
            problem = f" The stop request failed: {error}"
        if not first:
            return
        who, again = _WHO[signal.Signals(self.first_signal)]
        if self._trains():
            text = f"after this step, with a checkpoint. {again} ends at once, without one."
        else:
            text = f"before the first step. {again} ends at once."
        self._report(f"{who} {text}{problem}")

    def _trains(self) -> bool:
        """Whether the ranks have begun training, according to the event log."""
        assert self._folder is not None
        with contextlib.suppress(OSError):
            return any(isinstance(event, Attempt) for event in EventTail(self._folder.events, self._begun).new())
        return False

    def _end_at_once(self) -> None:
        """Exit without waiting, and kill all descendants of this process."""
        # On another thread, because this one may just be writing the same file.
        writer = threading.Thread(target=self._note_the_end, daemon=True)
        writer.start()
        writer.join(LAST_WORD_SECONDS)
        end_children()
        os._exit(EXIT_INTERRUPTED)

    def _note_the_end(self) -> None:
        assert self._folder is not None
        with contextlib.suppress(ShardyardError):
            self._folder.update(state="interrupted")


def take_signals(handle: Callable[[int, object], None]) -> dict[int, object]:
    """Install `handle` for the signals that end a run; returns the previous handlers.

    SIGHUP stays ignored under `nohup`. After SIGHUP, terminal output is discarded, because writing to a closed terminal
    fails.
    """

    def hung_up(number: int, frame: object) -> None:
        _leave_the_terminal()
        handle(number, frame)

    before: dict[int, object] = {}
    for number in CODES:
        had = signal.getsignal(number)
        if number == signal.SIGHUP and had is signal.SIG_IGN:
            continue
        before[number] = had
        signal.signal(number, hung_up if number == signal.SIGHUP else handle)
    return before


def _leave_the_terminal() -> None:
    """Redirect files that are open on a terminal to /dev/null; `isatty` is false for a closed one."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(("/dev/pts/", "/dev/tty", "/dev/console")):
                os.dup2(nowhere, int(name), inheritable=int(name) <= 2)
    os.close(nowhere)


def stoppable(work: Callable[[StopSignals], int]) -> int:
    """Run training work in this process with signals handled throughout; returns the exit code."""
    signals = StopSignals()
    before = signals.install()
    try:
        return work(signals)
    except BaseException:
        # An exception raised by a signal during an import may be replaced by another one.
        if not signals.cut_short:
            signals.note_failure()
            raise
        return signals.settle()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def note(text: str) -> None:
    """Print a message on stderr."""
    sys.stderr.write(f"{text}\n")


def _size(folder: RunFolder) -> int:
    return folder.events.stat().st_size if folder.events.exists() else 0
