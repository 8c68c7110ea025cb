"""What `shardyard runs RUN` says of what went wrong."""

from __future__ import annotations

from shardyard.cli.view.troubles import lines, troubles
from shardyard.tracking.run.events import (
    CheckpointFailed,
    CheckpointSaved,
    Event,
    Finished,
    MirrorFailed,
    Notice,
    Recovered,
)

FAILED = CheckpointFailed(time=60.0, step=30, error="the checkpoint of step 30 could not be written: x\nMend it.")


def test_nothing_went_wrong() -> None:
    assert lines([CheckpointSaved(time=1.0, step=10), Notice(time=2.0, text="starting"), Finished(time=3.0)]) == []


def test_failures_losses_and_recoveries_are_told_in_order() -> None:
    removed = Notice(time=61.0, text="the disk is full: step-00000010 made room", warns=True)
    recovered = Recovered(time=62.0, step=31, seconds=4.0)
    events: list[Event] = [Notice(time=1.0, text="starting"), FAILED, removed, recovered]
    assert troubles(events) == [FAILED, removed, recovered]
    assert lines(events) == [
        "what went wrong, newest last:",
        "  1970-01-01T00:01:00+00:00  the checkpoint of step 30 could not be written: x",
        "    Mend it.",
        "  1970-01-01T00:01:01+00:00  the disk is full: step-00000010 made room",
        "  1970-01-01T00:01:02+00:00  recovered: step 31 after 4.0 s",
    ]


def test_of_many_the_newest_are_told() -> None:
    found = lines([MirrorFailed(time=float(at), error=f"error {at}") for at in range(14)])
    assert found[0] == "what went wrong, newest last; 4 earlier ones in events.jsonl:"
    assert len(found) == 11
    assert found[1].endswith("error 4; it is tried again")
