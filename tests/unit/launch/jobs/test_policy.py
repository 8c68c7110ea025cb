"""What follows each exit code of an attempt."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.launch.jobs.policy import Again, End, decide
from shardyard.launch.jobs.spec import limit_seconds

POLICY: dict[str, Any] = {"retries": 2, "on_failed": "resume", "on_timeout": "resume", "on_preempted": "resume"}
NEVER: dict[str, Any] = {**POLICY, "on_failed": "end", "on_timeout": "end", "on_preempted": "end"}


@pytest.mark.parametrize("code", [0, 2, 130])
def test_done_invalid_and_interrupted_end_whatever_the_recipe_says(code: int) -> None:
    assert decide(code, POLICY, retries=0, stopped=False) == End(code)


@pytest.mark.parametrize(
    ("code", "field"), [(1, "on_failed"), (-9, "on_failed"), (124, "on_timeout"), (143, "on_preempted")]
)
def test_each_code_has_its_field(code: int, field: str) -> None:
    again = decide(code, {**NEVER, field: "resume"}, retries=0, stopped=False)
    assert isinstance(again, Again)
    assert "retry 1 of 2" in again.reason
    end = decide(code, {**POLICY, field: "end"}, retries=0, stopped=False)
    assert isinstance(end, End)
    assert end.exit_code == (1 if code < 0 else code)
    assert f"job.{field} is end" in end.reason


def test_a_killed_driver_is_said_to_be_killed() -> None:
    again = decide(-9, POLICY, retries=0, stopped=False)
    assert isinstance(again, Again)
    assert "signal 9" in again.reason


@pytest.mark.parametrize("code", [1, 124, 143, -15])
def test_nothing_that_was_asked_to_stop_is_retried(code: int) -> None:
    assert decide(code, POLICY, retries=0, stopped=True) == End(1 if code < 0 else code)


def test_retries_are_used_up_and_waits_double_up_to_a_minute() -> None:
    waits = []
    for retries in range(12):
        found = decide(1, {**POLICY, "retries": 12}, retries=retries, stopped=False)
        assert isinstance(found, Again)
        waits.append(found.wait_seconds)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == 60.0
    last = decide(1, POLICY, retries=2, stopped=False)
    assert last == End(1, "the run failed; job.retries is 2 and used up")
    assert decide(1, {**POLICY, "retries": 0}, retries=0, stopped=False) == End(1, "the run failed; job.retries is 0")


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("1.5h", 5400), ("2d", 172800), ("45s", 45)])
def test_time_limits(text: str, seconds: float) -> None:
    assert limit_seconds(text) == seconds
