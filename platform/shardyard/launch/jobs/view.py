"""The output of a run in the log of its job: plain lines and progress records."""

from __future__ import annotations

from typing import IO

from shardyard.launch.jobs.progress import JobProgress
from shardyard.launch.run.lines import PLAIN_ROWS, LinesView
from shardyard.tracking.metrics import record
from shardyard.tracking.run.events import Attempt, Event, Waiting
from shardyard.tracking.run.waiting import Wait


class JobView(LinesView):
    """Plain lines, with a progress record for each twentieth of the run, each attempt, and each wait."""

    def __init__(self, stream: IO[str], run_id: str, total_steps: int) -> None:
        super().__init__(stream, run_id, total_steps)
        self._log = stream
        self._last_block = -1

    def on_metrics(self, records: list[dict[str, float]]) -> None:
        """Show lines of metrics.jsonl, in order."""
        super().on_metrics(records)
        step, total = self.progress.step, self.progress.total_steps
        block = step // max(1, total // PLAIN_ROWS)
        if block != self._last_block or step == total:
            self._last_block = block
            self._record()

    def on_events(self, events: list[Event]) -> None:
        """Show events, in order."""
        super().on_events(events)
        for event in events:
            if isinstance(event, Waiting):
                self._record(event.wait)
            elif isinstance(event, Attempt):
                self._record()

    def _record(self, waiting: Wait | None = None) -> None:
        known = self.progress
        progress = JobProgress(known.step, known.total_steps, known.metrics.get(record.TRAIN_LOSS), waiting)
        self._log.write(f"{progress.to_line()}\n")
