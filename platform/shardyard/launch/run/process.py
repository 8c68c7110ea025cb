"""A process dedicated to one run: its output goes to a log, signals stop the run, and a view shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

from shardyard.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_TIMEOUT
from shardyard.launch.run.output import Terminal
from shardyard.launch.run.plans import PlannedRun
from shardyard.launch.run.signals import StopSignals
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.lease import Lease

if TYPE_CHECKING:
    from shardyard.engine.loop import Outcome
    from shardyard.launch.run.lines import RunView

EXIT_CODES: dict[Outcome, int] = {
    "finished": 0,
    "paused": 0,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
    "timeout": EXIT_TIMEOUT,
}
# Creates the view of a run: stream, run id, number of steps.
MakeView = Callable[[TextIO, str, int], "RunView"]


def give_over(
    run: PlannedRun,
    folder: RunFolder,
    signals: StopSignals,
    lease: Lease,
    *,
    view: MakeView | None = None,
    until: int | None = None,
    trust: bool = False,
) -> Outcome:
    """Train in a run folder with this process, to the end; returns the outcome.

    Args:
        view: shows it on the original stdout; None shows nothing.
        until: pause after this step, with a checkpoint.
        trust: load checkpoint files that may execute code.

    Raises:
        ShardyardError: the run failed, or another process took it over.
    """
    terminal = Terminal(folder.path / "logs" / "driver.log")
    try:
        live_view = None if view is None else view(terminal.stream, folder.id, run.plan.steps)
        shown: AbstractContextManager[object] = nullcontext() if live_view is None else live_view
        report = (lambda text: None) if live_view is None else live_view.message
        with shown, signals.driving(folder, report):
            # After the redirection, because importing Ray and DeepSpeed prints messages; and after signals have become
            # requests, because an exception during an import may be replaced by another one.
            from shardyard.launch.run.carry_out import carry_out

            return carry_out(
                run,
                folder,
                lease,
                stop=signals.stop,
                observer=live_view,
                until=until,
                trust=trust,
                # Ray replaces signal handlers when it connects.
                while_waiting=signals.install_again,
                tells=terminal.told,
            )
    finally:
        terminal.restore()
