"""What the watchdog makes of looks over time."""

from __future__ import annotations

from dataclasses import replace

from shardyard.launch.ray.watchdog import GAP_SECONDS, History
from shardyard.tracking.watch.look import Look

LOOK = Look(0, 7, "h", "S", phase="forward", age_seconds=100.0)


def test_a_driver_that_stood_still_blames_nobody_for_it() -> None:
    history = History(0.0)
    history.add([LOOK], 50.0)
    history.add([LOOK], 51.0)
    assert history.watched(51.0)[0].look.age_seconds == 51.0, "nothing from before the watch counts"
    history.add([LOOK], 60.0 + GAP_SECONDS)
    assert history.watched(60.0 + GAP_SECONDS)[0].look.age_seconds == 0.0


def test_a_node_that_does_not_answer_is_not_judged() -> None:
    history = History(0.0)
    history.add([LOOK, replace(LOOK, rank=1)], 1.0)
    for second in range(2, 10):
        history.add([LOOK], float(second))
    assert [one.look.rank for one in history.watched(9.0)] == [0]


def test_ranks_at_work_are_not_idle() -> None:
    history = History(0.0)
    for second in range(1, 5):
        looks = [
            replace(LOOK, rank=0, cpu_seconds=0.9 * second),
            replace(LOOK, rank=1, io_bytes=5_000_000 * second),
            replace(LOOK, rank=2, beats=second),
            replace(LOOK, rank=3),
        ]
        history.add(looks, float(second))
    assert [one.idle_seconds for one in history.watched(4.0)] == [0.0, 0.0, 0.0, 3.0]
