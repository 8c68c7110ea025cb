"""Records of progress in the log of a job: written beside the lines for people, found, and left out for people."""

from __future__ import annotations

import io

import pytest

from shardyard.launch.jobs.progress import JobProgress, newest_progress, without_records
from shardyard.launch.jobs.view import JobView
from shardyard.launch.schedulers.base import tail
from shardyard.tracking.run.events import Attempt, Notice, Waiting
from shardyard.tracking.run.waiting import Wait

QUEUE = Wait("queue", jobs_ahead=2)


def test_the_newest_record_of_a_log_is_found() -> None:
    first, second = JobProgress(waiting=QUEUE), JobProgress(120, 500, 1.93)
    log = f"run folder /runs/a\n{first.to_line()}\nwaiting: 2 jobs\n"
    assert newest_progress(log) == first
    assert newest_progress(f"{log}{second.to_line()}\n  120/500   1.9300\n") == second
    assert newest_progress("  120/500   1.9300  1.0e-3\n") is None, "lines for people are not parsed"
    assert newest_progress('@progress {"format": 99, "step": 3}\n') is None
    assert newest_progress("@progress {half") is None
    assert newest_progress('@progress {"step": "many", "waiting": 3}') == JobProgress()


@pytest.mark.parametrize("size", [1, 3, 11, 1000])
def test_people_see_all_lines_but_the_records(size: int) -> None:
    log = f"a\n{JobProgress(1, 2).to_line()}\n\n@progressive\n{JobProgress(2, 2).to_line()}\nb\r\u2028c\n@pro"
    pieces = [log[begin : begin + size] for begin in range(0, len(log), size)]
    assert "".join(without_records(pieces)) == "a\n\n@progressive\nb\r\u2028c\n@pro"
    assert list(without_records(["half a line", " and the rest\n"])) == ["half a line", " and the rest\n"]


def test_the_last_lines_of_a_log_are_those_for_people() -> None:
    record = JobProgress(1, 2).to_line()
    log = f"a\n{record}\nb\n{record}\n"
    assert tail(log, 0) == ""
    assert tail(log, 1) == f"b\n{record}\n"
    assert tail(log, 2) == tail(log, 9) == tail(log, None) == log


def test_the_log_of_a_job_has_a_record_for_each_twentieth_attempt_and_wait() -> None:
    stream = io.StringIO()
    with JobView(stream, "a", 40) as view:
        view.on_events([Waiting(wait=QUEUE)])
        assert newest_progress(stream.getvalue()) == JobProgress(total_steps=40, waiting=QUEUE)
        view.on_events([Notice(text="starting"), Attempt(number=1, world_size=1)])
        assert newest_progress(stream.getvalue()) == JobProgress(total_steps=40)
        for step in range(1, 41):
            view.on_metrics([{"step": step, "time": float(step), "train/loss": 2.0}])
    log = stream.getvalue()
    assert newest_progress(log) == JobProgress(40, 40, 2.0)
    shown = "".join(without_records([log])).splitlines()
    assert 20 <= len(log.splitlines()) - len(shown) <= 25
    assert shown[:3] == ["a: 40 steps", "* waiting: 2 jobs submitted before it are ahead", "* starting"]
