"""When a run on fewer workers than it could have asks to be restarted on more."""

from __future__ import annotations

from pathlib import Path

from shardyard.engine.job import Job
from shardyard.launch.ray.elastic import Growth, job_on, sizes_of_job
from shardyard.planning.placement import Amount, Node
from support.tiny import tiny_job, tiny_recipe, write_corpus


def make_job(folder: Path, **cluster: object) -> Job:
    recipe = tiny_recipe(
        write_corpus(folder, 20),
        data={"streams": 8},
        train={"global_batch": 8},
        cluster={"workers": 4, "min_workers": 1, "grow_after": 30, "cpus_per_worker": 1, **cluster},
    )
    return tiny_job(recipe, folder / "runs", world_size=4)


def test_every_size_trains_the_same_global_batches(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    sizes = sizes_of_job(job, lambda demand: demand)
    assert [(one.workers, one.demand.workers, one.job.plan.world.size) for one in sizes] == [
        (size, size, size) for size in (4, 2, 1)
    ]
    assert sizes[0].job is job
    for one in sizes:
        plan = one.job.plan
        assert plan.micro_batch * plan.accumulation * one.workers == 8
        assert (plan.streams, plan.steps, one.job.recipe.cluster.workers) == (job.plan.streams, job.plan.steps, 4)


def test_a_run_grows_once_there_has_been_room_without_a_break(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    small = job_on(job, 1)
    small.folder.update(placement=[{"node": "a", "address": "", "host": "", "ranks": [0], "pids": [1], "gpus": [[]]}])
    now, free, told = [0.0], [0.0], list[str]()
    growth = Growth(
        small,
        sizes_of_job(job, lambda demand: demand),
        # The run's own core on this node is not free.
        lambda: [Node("a", Amount(4.0), Amount(free[0]))],
        told.append,
        clock=lambda: now[0],
    )

    def until(second: float) -> bool:
        while now[0] < second:
            now[0] += 1
            growth.look()
        return small.folder.resize_requested()

    assert not until(100)
    free[0] = 1.0
    assert not until(120)
    free[0] = 0.0
    assert not until(140)
    free[0] = 1.0
    assert not until(165)
    assert until(180)
    assert told == ["there is room for 2 workers: goes on on them, from 1, after a checkpoint"]
    small.folder.clear_resize()
    assert not until(400), "a run asks once"


def test_a_run_that_has_all_its_workers_asks_nobody(tmp_path: Path) -> None:
    job = make_job(tmp_path)

    def nodes() -> list[Node]:
        raise AssertionError

    now = [0.0]
    growth = Growth(job, sizes_of_job(job, lambda demand: demand), nodes, print, clock=lambda: now[0])
    for second in range(100):
        now[0] = second
        growth.look()
