"""A hang in the records of a run: its report, and the event that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from shardyard.tracking.run.events import Hang
from shardyard.tracking.watch import report
from shardyard.tracking.watch.judge import Verdict, Watched
from shardyard.tracking.watch.look import Evidence


def record_hang(
    run: Path, attempt: int, verdict: Verdict, watched: Sequence[Watched], evidence: Mapping[int, Evidence], then: str
) -> tuple[Hang, str]:
    """Write the report into a run folder, if that is possible; returns the event, and one line about it.

    Args:
        then: what is done about it.
    """
    step = max(one.look.step for one in watched)
    name = f"attempt-{attempt:03d}-step-{step:08d}"
    where = run / report.FOLDER / name
    text, headline = report.text_of(verdict, watched, evidence, then, where), report.headline(verdict)
    path = ""
    with contextlib.suppress(OSError):
        path = str(report.keep(run, name, text, verdict, watched, evidence))
    event = Hang(
        step=step,
        seconds=verdict.seconds,
        ranks=verdict.ranks,
        text=headline,
        report=f"{report.FOLDER}/{name}/{report.REPORT}" if path else "",
        table=text,
    )
    return event, f"the run hangs: {headline}" + (f" (report: {where / report.REPORT})" if path else "")
