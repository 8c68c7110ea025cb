"""A process beside a rank that has no driver: it looks at the rank once a second, and reports and ends it if it hangs.

    python -m shardyard.tracking.watch.beside

Its standard input is one line of JSON (`Watch`) and then nothing, until the rank no longer needs it or has ended. It
imports only what the records of a run need, so that it takes little memory and time.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from shardyard.tracking.run.events import write_event
from shardyard.tracking.run.folder import RunFolder, typed
from shardyard.tracking.watch.beat import Handle
from shardyard.tracking.watch.hangs import record_hang
from shardyard.tracking.watch.history import History
from shardyard.tracking.watch.judge import Limits, Verdict, Watched, judge
from shardyard.tracking.watch.look import Target, look, question_and_end

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Watch:
    """What to watch. run: path of the run folder. ends: whether a rank that hangs is ended; kept: why not."""

    run: str
    pid: int
    host: str
    handle: Handle
    limits: Limits
    ends: bool
    kept: str = ""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Watch:
        """The same from its line."""
        found = json.loads(text)
        return Watch(**{**found, "handle": Handle(**found["handle"]), "limits": Limits(**found["limits"])})


def watch(wanted: Watch, asks: IO[str]) -> None:
    """Look until the rank ends, or until `asks` does."""
    target = Target(0, wanted.pid, wanted.host, wanted.handle)
    history, reported = History(time.monotonic()), False
    poll_seconds = min(POLL_SECONDS, wanted.limits.hang / 4)
    while not select.select([asks], [], [], poll_seconds)[0]:
        looks = look([target])
        if not looks:
            return
        history.add(looks, time.monotonic())
        watched = history.watched(time.monotonic())
        verdict = judge(watched, wanted.limits)
        if verdict is not None and not reported:
            _act(wanted, target, verdict, watched)
        reported = verdict is not None


def _act(wanted: Watch, target: Target, verdict: Verdict, watched: list[Watched]) -> None:
    run = RunFolder(Path(wanted.run))
    evidence = {one.rank: one for one in question_and_end([target], end=wanted.ends)}
    resume = f"`shardyard resume {typed(run.path)}` goes on from the newest checkpoint"
    then = f"its process was ended; {resume}" if wanted.ends else f"nothing, because {wanted.kept}"
    with contextlib.suppress(OSError):
        event, message = record_hang(run.path, run.info().attempts, verdict, watched, evidence, then)
        sys.stderr.write(f"{message}\ndone: {then}\n")
        sys.stderr.flush()
        write_event(run.events, event)


if __name__ == "__main__":
    watch(Watch.from_json(sys.stdin.readline()), sys.stdin)
