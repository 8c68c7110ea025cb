"""A fake driver of jobs: follows FAKE_DRIVER, which has one word per start, and logs its actions to FAKE_LOG.

A word is an exit code, `stop` (run until a stop is requested, then obey), `deaf` (ignore stop requests) or `die`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from shardyard.launch.ray.queue import hold_slot, placed
from shardyard.tracking.run.folder import RunFolder
from support.waiting import until

CODES = {"interrupt": 130, "preempt": 143, "timeout": 124}
STATES = {"interrupt": "interrupted", "preempt": "preempted", "timeout": "interrupted"}


def main() -> int:
    """Run one attempt."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log, folder = Path(os.environ["FAKE_LOG"]), RunFolder(sys.argv[2])
    done = log.read_text().count(f"{folder.id} ") if log.exists() else 0
    word = os.environ["FAKE_DRIVER"].split()[done]
    folder.clear_stop()
    hold_slot()
    with log.open("a") as file:
        file.write(f"{folder.id} {word}\n")
    folder.update(state="running")
    placed()
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word in ("stop", "deaf"):
        reason = until(lambda: word == "stop" and folder.stop_requested(), "the end by force", seconds=3600, every=0.02)
        folder.update(state=STATES[reason], outcome=reason)
        return CODES[reason]
    folder.update(state="finished" if word == "0" else "failed")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
