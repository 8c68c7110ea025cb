"""A host that is a step ahead of its device, as with GPUs, records the same, stops in time and names the right step."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.engine import run
from shardyard.engine.checkpoint.files import committed_checkpoints, step_of
from shardyard.engine.run import Job, run_rank
from shardyard.engine.session import Session
from shardyard.engine.world import Rank
from shardyard.errors import ShardyardError
from shardyard.replaced import replaced
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

STEPS = 12
STOPPED_AT = 5
TIMED_AT = 6


def run_all(rank: Rank, jobs: dict[str, Job]) -> dict[str, tuple[str, list[int]]]:
    """Case → outcome, and how many results were not yet taken when a step began."""
    return {name: _run(rank, name, job) for name, job in jobs.items()}


def _run(rank: Rank, name: str, job: Job) -> tuple[str, list[int]]:
    assemble, taken, behind = run.assemble, list[int](), list[int]()

    def assembled(*given: Any, **options: Any) -> Session:
        session = assemble(*given, **options)
        session.runs_ahead = not name.startswith("plain")
        next_batch = session.next_batch

        def counted() -> Any:
            behind.append(session.engine.global_steps - len(taken))
            return next_batch()

        session.next_batch = counted  # type: ignore[method-assign]
        # The clock of rank 0 alone decides; it says so once, in the step after the fifth.
        session.checkpoint.falls_due = lambda: "timed" in name and len(behind) == TIMED_AT  # type: ignore[method-assign]
        return session

    def on_step(step: int, _: Any) -> None:
        taken.append(step)
        if name == "stopped" and step == STOPPED_AT and rank.is_first:
            job.folder.request_stop("preempt")

    with replaced(run, "assemble", assembled):
        try:
            return run_rank(job, rank, on_step=on_step), behind
        except ShardyardError as error:
            return str(error), behind


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, RunFolder], dict[str, tuple[str, list[int]]]]:
    folder = tmp_path_factory.mktemp("ahead")
    recipe = tiny_recipe(
        write_corpus(folder),
        model={"dropout": 0.1},
        train={"steps": STEPS, "micro_batch": 2},
        zero={"stage": 1},
        checkpoint={"every": 6},
        evaluate={"every": 4, "rows": 8},
        cluster={"workers": 2},
    )
    exploding = tiny_recipe(
        write_corpus(folder),
        train={"steps": STEPS},
        optimizer={"lr": 1e19},
        schedule={"name": "constant", "warmup": 0},
        zero={"stage": 1},
        cluster={"workers": 2},
    )
    timed = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"every": "1h"})})
    recipes = {
        "plain timed": timed,
        "timed": timed,
        "plain": recipe,
        "ahead": recipe,
        "stopped": recipe,
        "plain exploding": exploding,
        "exploding": exploding,
    }
    jobs = {name: tiny_job(one, folder / name.replace(" ", "-"), world_size=2) for name, one in recipes.items()}
    return {name: job.folder for name, job in jobs.items()}, run_ranks(2, run_all, jobs)[0]


def _lines(folder: RunFolder) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without times and memory."""
    own = ("time", "perf/", "memory/", "system/")
    return [{k: v for k, v in line.items() if not k.startswith(own)} for line in read_metrics(folder.metrics)]


def test_the_next_step_begins_before_the_result_of_one_is_taken(
    folders: tuple[dict[str, RunFolder], dict[str, tuple[str, list[int]]]],
) -> None:
    outcome, behind = folders[1]["ahead"]
    assert outcome == "finished"
    # Not after an evaluation (4, 8) or a checkpoint (6), which need the step before them.
    assert behind == [0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1]
    assert folders[1]["plain"] == ("finished", [0] * STEPS)


def test_records_are_the_same(folders: tuple[dict[str, RunFolder], dict[str, tuple[str, list[int]]]]) -> None:
    plain, ahead = (_lines(folders[0][name]) for name in ("plain", "ahead"))
    assert [line["step"] for line in ahead] == list(range(1, STEPS + 1))
    assert ahead == plain


def test_a_stop_is_obeyed_with_a_checkpoint(
    folders: tuple[dict[str, RunFolder], dict[str, tuple[str, list[int]]]],
) -> None:
    """Requested with the result of step 5, when step 6 was done: step 7 tells it to all ranks, while 8 is under way."""
    folder, (outcome, _) = folders[0]["stopped"], folders[1]["stopped"]
    assert outcome == "preempted"
    last = read_metrics(folder.metrics)[-1]["step"]
    assert last == STOPPED_AT + 3
    assert step_of(max(committed_checkpoints(folder.checkpoints))) == last


def test_an_explosion_names_its_step(folders: tuple[dict[str, RunFolder], dict[str, tuple[str, list[int]]]]) -> None:
    plain, ahead = (folders[1][name][0] for name in ("plain exploding", "exploding"))
    assert "at step" in plain
    assert plain.partition(". ")[0] == ahead.partition(". ")[0]


def test_a_checkpoint_by_the_clock_of_one_rank_is_that_of_all_and_changes_nothing(
    folders: tuple[dict[str, RunFolder], dict[str, tuple[str, list[int]]]],
) -> None:
    """A host that is a step ahead saves after the step that has begun meanwhile."""
    for name, steps in (("plain timed", [TIMED_AT, STEPS]), ("timed", [TIMED_AT + 1, STEPS])):
        folder = folders[0][name]
        assert folders[1][name][0] == "finished"
        assert [step_of(path) for path in committed_checkpoints(folder.checkpoints)] == steps
        assert _lines(folder) == _lines(folders[0]["plain"])
