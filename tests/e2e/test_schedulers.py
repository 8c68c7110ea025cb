"""The contract of a scheduler with real jobs: a Ray head, Slurm's daemons, and the example of docs/jobs.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyard.cli.main import run
from shardyard.launch.jobs.spec import new_run_id
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.run.plans import plan_of
from shardyard.launch.schedulers import registry
from shardyard.launch.schedulers.base import JobHandle, Scheduler
from shardyard.recipe.loading.load import load_recipe
from support.cli import write_recipe
from support.cluster import ray_head
from support.schedulers.contract import (
    Case,
    check_a_job_that_is_stopped,
    check_a_job_that_succeeds,
    check_questions_about_nothing,
)
from support.schedulers.example import example
from support.slurm import slurm_cluster
from support.tiny import write_corpus
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ENDLESS = ("train.steps=100000", "checkpoint.every=100000")
SHORT = ("train.steps=2", "schedule.warmup=1")


@pytest.fixture(scope="module", params=["processes", "ray", "slurm"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        if request.param == "processes":
            patch.setenv("PROCESSES_HOME", str(folder / "processes"))
            with example(folder) as (scheduler_class, _):
                yield _case(scheduler_class(), folder)
        elif request.param == "ray":
            (folder / "another").mkdir()
            # Jobs stay in their cluster, though Ray's supervisor names the one that was started last on the machine.
            with ray_head(folder, dashboard=True) as environment, ray_head(folder / "another"):
                for name, value in environment.items():
                    patch.setenv(name, value)
                yield _case(registry.create("ray"), folder)
        else:
            with slurm_cluster(folder / "s", cpus=4) as slurm:
                patch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
                yield _case(registry.create("slurm"), folder)


def _case(scheduler: Scheduler, folder: Path) -> Case:
    recipe = write_recipe(
        folder,
        write_corpus(folder),
        train={"threads": 1},
        evaluate={"every": 100_000},
        sample={"prompts": []},
        cluster={"workers": 1, "gpus_per_worker": 0},
    )

    def request(*overrides: str) -> SubmitRequest:
        loaded = load_recipe(str(recipe), list(overrides))
        plan, run_id = plan_of(loaded, elsewhere=True), new_run_id("tiny")
        return SubmitRequest(str(recipe), overrides, loaded, plan, folder / "runs", job_name="tiny", run_id=run_id)

    def begin(job: JobHandle) -> None:
        metrics = folder / "runs" / job.run_id / "metrics.jsonl"
        until(lambda: metrics.exists() and metrics.read_text(), lambda: f"{scheduler.status(job)} trains")
        until(lambda: scheduler.status(job).state == "RUNNING", "its scheduler says that it runs")

    return Case(
        scheduler,
        short=lambda: request(*SHORT),
        endless=lambda: request(*ENDLESS),
        begin=begin,
        finish=lambda job: None,  # which following its log waits for
        words="2/2",
    )


def test_questions_about_nothing(case: Case, tmp_path: Path) -> None:
    check_questions_about_nothing(case, tmp_path)


def test_a_job_that_is_stopped(case: Case) -> None:
    check_a_job_that_is_stopped(case)


def test_a_job_that_succeeds(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    check_a_job_that_succeeds(case)
    jobs = case.scheduler.list(ended=True)
    assert run(["ps", "--all", "-q"]) == 0
    assert {job.job.run_id for job in jobs} <= set(capsys.readouterr().out.split())
