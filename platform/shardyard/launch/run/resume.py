"""The entry point of a separate process that resumes a run: `python -m … RUN_FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shardyard.errors import ShardyardError
from shardyard.launch.run.plans import plan_resumed
from shardyard.launch.run.process import EXIT_CODES, give_over
from shardyard.launch.run.signals import StopSignals, note, stoppable
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.lease import Lease


def main(arguments: Sequence[str]) -> int:
    """Resume the run in a folder, without output; returns the exit code. An error is the last paragraph on stderr."""
    folder = RunFolder(arguments[0])

    def work(signals: StopSignals) -> int:
        with Lease.take(folder) as lease:
            folder.clear_stop()
            signals.attach(folder)
            return EXIT_CODES[give_over(plan_resumed(folder, folder.path.parent), folder, signals, lease)]

    try:
        return stoppable(work)
    except ShardyardError as error:
        note(f"Error: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
