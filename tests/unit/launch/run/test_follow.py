"""Following a run that writes while it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.launch.run.follow import RunTail
from shardyard.tracking.files import MetricsTail
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run.events import CheckpointSaved, EventTail
from shardyard.tracking.run.folder import RunFolder


def _named(lines: list[object]) -> list[object]:
    return [line["step"] if isinstance(line, dict) else f"saved {line.step}" for line in lines]  # type: ignore[attr-defined]


@pytest.mark.parametrize("tail_class", [MetricsTail, EventTail])
def test_lines_written_between_the_two_reads_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail_class: type
) -> None:
    folder = RunFolder.create(tmp_path, "gpt", "a", "b")
    plain, written = tail_class.new, [0]
    with Tracker(folder) as tracker:

        def two_steps() -> None:
            for _ in range(2):
                written[0] += 1
                tracker.record(StepRecord(written[0], {"train/loss": 1.0}))
                tracker.event(CheckpointSaved(step=written[0], path="x", seconds=0.1, bytes=10))

        def new(tail: object) -> object:
            lines = plain(tail)
            two_steps()
            return lines

        two_steps()
        tail, seen = RunTail(folder), []
        monkeypatch.setattr(tail_class, "new", new)
        for _ in range(3):
            seen += _named(tail.new())
        monkeypatch.undo()
        seen += _named(tail.rest())
    assert seen == [one for step in range(1, written[0] + 1) for one in (step, f"saved {step}")]
