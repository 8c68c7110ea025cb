"""The order of submission as the logs of Ray's jobs tell it."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from shardyard.launch.jobs import log as job_log
from shardyard.launch.jobs.log import first_time, is_starting, submitted_at, wait_for_earlier_starts

ENTRY = "Running entrypoint for job a: exec python -m shardyard.launch.jobs.entry job.json\n"


def _line(moment: float) -> str:
    date = datetime.fromtimestamp(moment)
    shown = f"{date:%Y-%m-%d %H:%M:%S},{date.microsecond // 1000:03d}"
    return f"{shown}\tINFO job_manager.py:579 -- Runtime env is setting up.\n"


def test_the_first_line_of_a_log_dates_the_job(tmp_path: Path) -> None:
    moment = round(time.time(), 3)
    log = tmp_path / "job-driver-a.log"
    log.write_text(_line(moment))
    assert submitted_at({"submitted": 1.0}, log) == pytest.approx(moment, abs=0.002)
    log.write_text("something else\n")
    assert submitted_at({"submitted": 1.0}, log) == 1.0
    assert first_time("") is None


@pytest.mark.parametrize(
    ("rest", "starting"),
    [
        ("", True),
        (ENTRY, True),
        (ENTRY + "run folder /runs/a\n", False),
        ("Running entrypoint for job a: python train.py\n", False),
    ],
)
def test_a_job_starts_until_it_says_its_run_folder_or_is_somebody_elses(rest: str, starting: bool) -> None:
    assert is_starting(_line(time.time()) + rest) is starting


def test_only_earlier_jobs_that_still_start_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    own = tmp_path / "job-driver-own.log"
    own.write_text(_line(now))
    earlier = tmp_path / "job-driver-earlier.log"
    earlier.write_text(_line(now - 1))
    (tmp_path / "job-driver-later.log").write_text(_line(now + 1))
    (tmp_path / "job-driver-late.log").write_text(_line(now - job_log.STARTING_SECONDS - 1))
    (tmp_path / "raylet.out").write_text("no job\n")
    looks = iter([False, False, True])
    wait_for_earlier_starts(now, lambda: next(looks), own)
    assert next(looks, None) is None, "it waited for the earlier one until it was asked to stop"
    earlier.write_text(_line(now - 1) + ENTRY + "run folder /runs/earlier\n")
    wait_for_earlier_starts(now, lambda: False, own)


def test_without_such_a_log_nothing_is_waited_for() -> None:
    wait_for_earlier_starts(time.time())
    assert submitted_at({"submitted": 7.0}) == 7.0
