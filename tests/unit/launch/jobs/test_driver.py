"""The driver of a job: what an attempt trains with, and the file that carries the job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardyard.launch.jobs import driver, entry
from shardyard.launch.jobs.spec import FORMAT, JobSpec, read_spec, spec_of, write_spec
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.run.plans import PlannedRun, plan_of, plan_resumed
from shardyard.planning.plan_text import from_dict, resolved_text
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.run.folder import RunFolder


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, RunFolder]:
    """A submitted job whose run folder is made: job.json and the folder."""
    loaded = load_recipe("gpt/quickstart", ["cluster.workers=1"])
    plan = plan_of(loaded, elsewhere=True)
    request = SubmitRequest(
        "gpt/quickstart", (), loaded, plan, tmp_path / "runs", "mine", resolved=resolved_text(loaded.recipe, plan)
    )
    spec = spec_of(request)
    write_spec(spec, tmp_path / "job.json")
    return tmp_path / "job.json", entry.run_folder(read_spec(tmp_path / "job.json"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """What attempts were told to train with; nothing is trained."""
    found: list[PlannedRun] = []

    def give_over(planned: PlannedRun, *_: Any, **__: Any) -> str:
        found.append(planned)
        return "finished"

    monkeypatch.setattr(driver, "give_over", give_over)
    monkeypatch.setattr(driver, "ending_lines", lambda *_: [])
    return found


def attempt(job: tuple[Path, RunFolder]) -> None:
    path, folder = job

    class NoSignals:
        def attach(self, folder: RunFolder) -> None: ...

    assert driver.attempt(path, folder, NoSignals()) == 0  # type: ignore[arg-type]


def test_a_retried_job_trains_with_what_resume_has_set(job: tuple[Path, RunFolder], trained: list[PlannedRun]) -> None:
    _, folder = job
    attempt(job)
    plan_resumed(folder, folder.path.parent, ["optimizer.lr=0.00321", "train.steps=120"], local=True)
    attempt(job)
    first, second = trained
    assert first.loaded.recipe.optimizer.lr != second.loaded.recipe.optimizer.lr == 0.00321
    assert first.plan.steps != second.plan.steps == 120
    assert from_dict(json.loads(folder.plan.read_text())).steps == folder.info().total_steps == 120
    assert folder.info().plan["steps"] == 120


def test_an_undisturbed_job_trains_with_the_plan_that_travelled_with_it(
    job: tuple[Path, RunFolder], trained: list[PlannedRun]
) -> None:
    path, folder = job
    attempt(job)
    spec = read_spec(path)
    assert trained[0].plan == from_dict(spec["plan"]) == from_dict(json.loads(folder.plan.read_text()))
    assert trained[0].loaded.recipe.model_dump(mode="json") == spec["recipe"]


def test_job_files_of_other_versions(job: tuple[Path, RunFolder]) -> None:
    path, _ = job
    spec: dict[str, Any] = json.loads(path.read_text())
    assert spec.keys() <= JobSpec.__annotations__.keys()
    old = {name: value for name, value in spec.items() if name != "format"} | {"of_yesterday": 1}
    path.write_text(json.dumps(old))
    assert read_spec(path)["run_id"] == spec["run_id"]
    path.write_text(json.dumps(spec | {"format": FORMAT + 1}))
    with pytest.raises(ValueError, match=r"newer version of Shardyard wrote it.*upgrade"):
        read_spec(path)
