"""Waiting for a cluster to have room: what is said, when it is said, and when waiting is pointless."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import ray

from shardyard.errors import HardwareError, ShardyardError
from shardyard.launch.describe import wait_in_words
from shardyard.launch.ray import quirks
from shardyard.launch.ray.cluster import RayCluster
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

    def room(self, *demands: Demand, stopped: Callable[[], bool] = lambda: False) -> Resources:
        def sleep(seconds: float) -> None:
            self.now += seconds
            assert self.now < 1000, "it waits forever"

        def tell(wait: Wait) -> None:
            self.waits.append(wait)
            self.told.append((self.now, wait_in_words(wait).removeprefix("waiting for resources: ")))

        return Resources(demands or (TWO,), self, tell, stopped, sleep=sleep, clock=lambda: self.now)


def placed(room: Resources) -> Placement | None:
    found = room.wait()
    return None if found is None else found[1]


def test_a_free_cluster_is_taken_at_once() -> None:
    scene = Scene([node(2)])
    assert placed(scene.room()) == Placement((("a", 2),))
    assert (scene.now, scene.told) == (0, [])


def test_waiting_is_said_once_and_when_it_changes() -> None:
    busy, half, free = [node(0)], [node(1)], [node(2)]
    scene = Scene(*[busy] * 30, *[half] * 30, free)
    assert placed(scene.room()) == Placement((("a", 2),))
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
    assert placed(room) == Placement(())
    assert placed(room) == Placement(())
    assert scene.told == [(0, "needs 2 CPU cores; 1 in the cluster; more were requested from its autoscaler")]


def test_a_run_that_lost_a_node_waits_for_it() -> None:
    """Only before its first attempt a run is refused: what it has trained is worth waiting for."""
    whole, lost = [node(1, "a"), node(1, "b")], [node(1, "a")]
    scene = Scene(whole, *[lost] * 9, whole)
    room = scene.room(APART)
    assert placed(room) == Placement((("a", 1), ("b", 1)))
    scene.now = 1
    assert placed(room) == Placement((("a", 1), ("b", 1)))
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
    assert placed(room) == Placement((("a", 1), ("b", 1)))
    scene.now = 1
    assert placed(room) == Placement((("b", 2),))


def test_fewer_workers_serve_where_all_find_no_room_in_a_moment() -> None:
    one = Demand(workers=1, bundle=Amount(1.0), group=1, strategy="pack", most_per_node=None)
    late = Scene(*[[node(1)]] * 3, [node(2)])
    assert late.room(TWO, one).wait() == (TWO, Placement((("a", 2),)))
    assert late.now == 3, "resources of ranks that just ended are worth a moment"
    lost = Scene([node(1)])
    assert lost.room(TWO, one).wait() == (one, Placement((("a", 1),)))
    assert lost.now == 5
    full = Scene(*[[node(0)]] * 60, [node(1)])
    assert full.room(TWO, one).wait() == (one, Placement((("a", 1),)))
    assert [text for _, text in full.told] == ["needs 1 CPU core on 1 node; 0 free"]


def test_what_never_holds_the_fewest_is_refused() -> None:
    three, two = (Demand(count, Amount(1.0), 1, "pack", None) for count in (3, 2))
    with pytest.raises(HardwareError, match="refused"):
        Scene([node(1, total=1)]).room(three, two).wait()
    assert Scene([node(2)]).room(three, two).wait() == (two, Placement((("a", 2),)))


def test_a_run_that_waits_can_be_stopped() -> None:
    scene = Scene([node(0)])
    assert scene.room(stopped=lambda: scene.now >= 5).wait() is None
    assert scene.now == 5


def test_a_local_ray_without_its_node_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its raylet died; in a cluster that a person named, another node may come."""
    monkeypatch.setattr(quirks, "free_resources", dict)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a", "Alive": False, "Resources": {}}])
    assert RayCluster("10.0.0.1:6379").nodes() == []
    with pytest.raises(ShardyardError, match="the Ray of this run has died"):
        RayCluster(None).nodes()
