"""Waiting for a cluster to have room: what is said, when it is said, and when waiting is pointless."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from shardyard.errors import HardwareError
from shardyard.launch.describe import wait_in_words
from shardyard.launch.ray.resources import Resources
from shardyard.planning.placement import Amount, Demand, Node, Placement
from shardyard.planning.shortage import Shortage
from shardyard.tracking.run.waiting import Wait

TWO = Demand(workers=2, bundle=Amount(1.0), group=1, strategy="pack", most_per_node=None)
APART = Demand(workers=2, bundle=Amount(1.0), group=1, strategy="strict_spread", most_per_node=1)


def node(free: float, name: str = "a", total: float = 2) -> Node:
    return Node(name, Amount(total), Amount(free))


class Scene:
    """A cluster whose nodes change second by second; time passes only by sleeping."""

    def __init__(self, *seconds: list[Node], autoscales: bool = False) -> None:
        self.seconds = seconds
        self.autoscales = autoscales
        self.now = 0.0
        self.told: list[tuple[float, str]] = []
        self.waits: list[Wait] = []

    def nodes(self) -> Sequence[Node]:
        return self.seconds[min(int(self.now), len(self.seconds) - 1)]

    def refuse_what_never_fits(self, demand: Demand) -> None:
        raise HardwareError("refused")

    def room(self, demand: Demand = TWO, stopped: Callable[[], bool] = lambda: False) -> Resources:
        def sleep(seconds: float) -> None:
            self.now += seconds
            assert self.now < 1000, "it waits forever"

        def tell(wait: Wait) -> None:
            self.waits.append(wait)
            self.told.append((self.now, wait_in_words(wait).removeprefix("waiting for resources: ")))

        return Resources(demand, self, tell, stopped, sleep=sleep, clock=lambda: self.now)


def test_a_free_cluster_is_taken_at_once() -> None:
    scene = Scene([node(2)])
    assert scene.room().wait() == Placement((("a", 2),))
    assert (scene.now, scene.told) == (0, [])


def test_waiting_is_said_once_and_when_it_changes() -> None:
    busy, half, free = [node(0)], [node(1)], [node(2)]
    scene = Scene(*[busy] * 30, *[half] * 30, free)
    assert scene.room().wait() == Placement((("a", 2),))
    assert scene.told == [
        (3, "needs 2 CPU cores on 1 node; 0 free"),
        (30, "needs 2 CPU cores on 1 node; 1 free"),
    ]
    assert scene.waits[0] == Wait("resources", shortage=Shortage("cpus", 2.0, nodes=1, available=0.0))


def test_resources_that_come_back_in_a_moment_are_not_spoken_of() -> None:
    scene = Scene([node(0)], [node(0)], [node(2)])
    scene.room().wait()
    assert (scene.now, scene.told) == (2, [])


def test_numbers_that_flicker_are_said_at_intervals() -> None:
    scene = Scene(*[[node(second % 2)] for second in range(60)], [node(2)])
    scene.room().wait()
    assert 2 <= len(scene.told) <= 5


def test_what_never_fits_is_refused_at_once() -> None:
    with pytest.raises(HardwareError, match="refused"):
        Scene([node(1, total=1)]).room().wait()
    with pytest.raises(HardwareError, match="refused"):
        Scene([node(2)]).room(APART).wait()


def test_an_autoscaler_is_left_to_find_nodes() -> None:
    scene = Scene([node(1, total=1)], autoscales=True)
    room = scene.room()
    assert room.wait() == Placement(())
    assert room.wait() == Placement(())
    assert scene.told == [(0, "needs 2 CPU cores; 1 in the cluster; more were requested from its autoscaler")]


def test_a_run_that_lost_a_node_waits_for_it() -> None:
    """Only before its first attempt a run is refused: what it has trained is worth waiting for."""
    whole, lost = [node(1, "a"), node(1, "b")], [node(1, "a")]
    scene = Scene(whole, *[lost] * 9, whole)
    room = scene.room(APART)
    assert room.wait() == Placement((("a", 1), ("b", 1)))
    scene.now = 1
    assert room.wait() == Placement((("a", 1), ("b", 1)))
    assert scene.now == 10
    assert [sentence for _, sentence in scene.told] == [
        "needs 2 CPU cores on 2 nodes; 2 in the cluster, but they hold 1 of 2 workers, one a node"
    ]
    (wait,) = scene.waits
    assert wait.shortage is not None
    assert (wait.reason, wait.shortage.workers_held, wait.shortage.constraint) == ("placement", 1, "one_per_node")


def test_a_spread_run_shrinks_to_the_node_that_is_left() -> None:
    spread = Demand(workers=2, bundle=Amount(1.0), group=1, strategy="spread", most_per_node=None)
    scene = Scene([node(2, "a"), node(2, "b")], [node(2, "b")])
    room = scene.room(spread)
    assert room.wait() == Placement((("a", 1), ("b", 1)))
    scene.now = 1
    assert room.wait() == Placement((("b", 2),))


def test_a_run_that_waits_can_be_stopped() -> None:
    scene = Scene([node(0)])
    assert scene.room(stopped=lambda: scene.now >= 5).wait() is None
    assert scene.now == 5
