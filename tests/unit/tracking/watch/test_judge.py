"""When a run hangs and who is missing, from looks that no process wrote."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardyard.tracking.watch.beat import PARTS
from shardyard.tracking.watch.judge import Limits, Verdict, Watched, judge, limit_of
from shardyard.tracking.watch.look import Collective, Look
from shardyard.tracking.watch.slow import Stragglers

LIMITS = Limits()


def rank(number: int, phase: str = "forward", age: float = 0.0, **more: object) -> Look:
    usual = Look(number, 100 + number, f"h{number}", "S", phase=phase, age_seconds=age, steps=50, slow_step_seconds=0.5)
    return replace(usual, **more)  # type: ignore[arg-type]


def waits(
    number: int, seconds: float | None, *, group: str = "0", operation: str = "all_reduce", elements: int = 8
) -> tuple[Collective, ...]:
    return (Collective(group, (0, 1), operation, "float32", elements, number, 1.0, seconds),)


def verdict(*looks: Look, idle: float = 0.0) -> Verdict | None:
    return judge([Watched(look, idle) for look in looks], LIMITS)


def test_a_step_may_take_ten_seconds_or_five_times_the_slowest_of_a_hundred() -> None:
    assert limit_of(Watched(rank(0)), LIMITS, idle_seconds=0) == 10.0
    assert limit_of(Watched(rank(0, slow_step_seconds=7.0)), LIMITS, idle_seconds=0) == 35.0
    assert verdict(rank(0, age=9.9), rank(1, age=9.9)) is None
    assert verdict(rank(0, age=34.0, slow_step_seconds=7.0)) is None
    found = verdict(rank(0, age=36.0, slow_step_seconds=7.0))
    assert found is not None
    assert (found.ranks, found.limit) == ((0,), 35.0)


@pytest.mark.parametrize(
    ("look", "idle", "limit"),
    [
        (rank(0, steps=2), 0.0, 1800.0),  # the first steps, at work
        (rank(0, steps=2), 301.0, 300.0),  # and not
        (rank(0, "start"), 20.0, 1800.0),
        (rank(0, "hook checkpoint", expected_seconds=0.1), 20.0, 1800.0),
        (rank(0, "hook evaluate"), 400.0, 300.0),
        (rank(0, "hook mine", expected_seconds=0.1), 0.0, 60.0),
        (rank(0, "hook mine", expected_seconds=30.0), 0.0, 150.0),
        (rank(0, "hook mine"), 0.0, 1800.0),  # seen too rarely to know
        (rank(0, "compile"), 0.0, 1800.0),
        (rank(0, "data"), 0.0, 900.0),
        (rank(0, "hook checkpoint", state="T"), 0.0, 10.0),
    ],
)
def test_limits_follow_the_phase(look: Look, idle: float, limit: float) -> None:
    assert limit_of(Watched(look), LIMITS, idle_seconds=idle) == limit


def test_a_short_time_limit_of_collectives_does_not_end_ranks_that_start() -> None:
    short = Limits(longest=15.0)
    assert limit_of(Watched(rank(0, "start")), short, idle_seconds=20.0) == 300.0
    assert limit_of(Watched(rank(0, steps=2)), short, idle_seconds=0.0) == 300.0


def test_ranks_that_wait_are_not_to_blame_for_one_that_reads_or_writes() -> None:
    waiting = rank(0, "backward", 200.0, collectives=waits(7, 200.0))
    assert verdict(waiting, rank(1, "data", 200.0)) is None
    assert verdict(waiting, rank(1, "hook checkpoint", 200.0), idle=10.0) is None
    assert verdict(waiting, rank(1, "forward", 3.0)) is None, "slow, but it goes on"


def test_a_stopped_rank_is_missing_in_whatever_phase() -> None:
    waiting = rank(0, "backward", 11.0, collectives=waits(7, 11.0))
    found = verdict(waiting, rank(1, "hook checkpoint", 11.0, state="T"))
    assert found is not None
    assert found.ranks == (1,)
    assert found.why == "rank 1 is stopped by a signal (SIGSTOP)"


def test_an_endless_loop_is_missing_from_the_collective_of_the_others() -> None:
    waiting = rank(0, "backward", 11.0, collectives=waits(7, 11.0))
    found = verdict(waiting, rank(1, "forward", 11.5, state="R", collectives=waits(6, None)))
    assert found is not None
    assert found.ranks == (1,)
    assert found.why == "rank 1 did not come to all_reduce #7 of 8 float32 of group 0; it is in forward"


def test_a_skipped_collective_names_the_rank_that_went_on() -> None:
    first = rank(0, "forward", 12.0, collectives=waits(1, 12.0, group="mine"))
    on = rank(1, "backward", 11.0, collectives=waits(7, 11.0))
    found = verdict(first, on)
    assert found is not None
    assert found.ranks == (1,)
    assert "did not come to all_reduce #1 of 8 float32 of group mine; it waits in all_reduce #7" in found.why
    assert verdict(replace(first, age_seconds=9.0), on) is None, "somebody may still come"


def test_different_collectives_of_one_number_and_a_dead_network() -> None:
    odd = rank(1, "backward", 11.0, collectives=waits(7, 11.0, operation="broadcast", elements=3))
    usual = [rank(number, "backward", 12.0, collectives=waits(7, 12.0)) for number in (0, 2)]
    found = verdict(*usual, odd)
    assert found is not None
    assert found.ranks == (1,)
    assert found.why.startswith("rank 1 is in broadcast #7 of 3 float32 where the others are in all_reduce #7 of 8")
    found = verdict(usual[0], rank(1, "backward", 11.0, collectives=waits(7, 11.0)))
    assert found is not None
    assert found.ranks == (0, 1)
    assert "the network or a device" in found.why


def spent(number: int, steps: int, **parts: float) -> Look:
    whole = {part: steps * parts.get(part, 0.01) for part in PARTS}
    return replace(rank(number), steps=steps, parts=whole, waited_seconds=steps * parts.get("waited", 0.0))


def test_a_slow_rank_is_named_with_its_part_once() -> None:
    stragglers = Stragglers(1.5, 20.0)

    def see(window: int, **slow: float) -> list[tuple[int, str]]:
        looks = [spent(0, 20 * window, waited=0.2), spent(1, 20 * window, **slow)]
        return [(one.rank, one.part) for one in stragglers.see(looks, 30.0 * window)]

    assert see(0, data=0.2) == []
    assert see(1, data=0.2) == [], "one window may be chance"
    assert see(2, data=0.2) == [(1, "data")]
    assert see(3, data=0.2) == [], "told already"
    # Of equal speed it is none: whole steps take equally long on all ranks, so waiting must not count.
    even = Stragglers(1.5, 20.0)
    for window in range(4):
        looks = [spent(0, 20 * window, waited=0.0), spent(1, 20 * window, waited=0.3)]
        assert even.see(looks, 30.0 * window) == []


def test_a_restarted_rank_begins_a_new_window() -> None:
    stragglers = Stragglers(1.5, 20.0)
    stragglers.see([spent(0, 100), spent(1, 100)], 0.0)
    assert stragglers.see([spent(0, 5), spent(1, 5)], 30.0) == []
    assert stragglers.see([spent(0, 25), spent(1, 25)], 60.0) == []
