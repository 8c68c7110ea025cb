"""What is kept of a sweep, and what Ray Tune and Optuna are told when it goes on."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher
from ruamel.yaml import YAML

from shardyard.cli.commands.sweep_run import _at_rest
from shardyard.engine.job import Job
from shardyard.errors import CheckpointError, RunFolderError, UsageError
from shardyard.launch.sweep.fit import fit_sweep, judge, predict
from shardyard.launch.sweep.folder import SweepFolder, TrialState, best_trial, list_sweeps, require_best
from shardyard.launch.sweep.plot import plot_law, plot_sweep
from shardyard.launch.sweep.scaling_laws import Hoffmann
from shardyard.launch.sweep.search import Bayesian, scheduler_of
from shardyard.launch.sweep.sweep import Progress
from shardyard.launch.sweep.trial import SweepTrial, _FollowedRun, adopt
from shardyard.recipe.sweep.load import load_sweep
from shardyard.recipe.sweep.schema import Sweep
from shardyard.tracking.files import JsonlWriter
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_job, tiny_recipe, write_corpus
from support.waiting import until

METRIC = "eval/validation/loss"


def new_sweep(folder: Path, **sections: Any) -> SweepFolder:
    base: dict[str, Any] = {"name": "small", "recipe": "gpt/quickstart"}
    base["parameters"] = {"optimizer.lr": {"values": [1e-3, 3e-3]}}
    path = folder / "sweep.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump({**base, **sections}, file)
    return SweepFolder.create(folder / "runs", load_sweep(str(path)))


def add_trial(
    folder: SweepFolder,
    number: int,
    state: Any,
    losses: list[float],
    sizes: tuple[int, int] = (10, 7),
    step_tokens: int = 100,
    **parameters: Any,
) -> RunFolder:
    """A trial with an evaluation at each tenth step."""
    plan = {"tokens_per_step": step_tokens, "architecture": {"parameters": sizes[0], "matmul_parameters": sizes[1]}}
    run = RunFolder.create(folder.runs_dir, f"small-{number:03d}", "", "", total_steps=10 * len(losses), plan=plan)
    writer = JsonlWriter(run.metrics)
    for index, loss in enumerate(losses):
        writer.append({"step": 10 * (index + 1), "train/loss": loss})
        writer.append({"step": 10 * (index + 1), METRIC: loss})
    writer.close()
    run.update(state=state)
    folder.note(number, run=run.id, parameters=parameters)
    return run


def test_the_state_of_a_trial_is_that_of_its_run(tmp_path: Path) -> None:
    folder = new_sweep(tmp_path)
    folder.update(state="running")
    add_trial(folder, 0, "finished", [3.0, 2.0], **{"optimizer.lr": 1e-3})
    add_trial(folder, 1, "interrupted", [3.0], **{"optimizer.lr": 3e-3})
    folder.note(1, stopped=True)
    add_trial(folder, 2, "running", [1.0])
    folder.note(3, error="the loss is nan", parameters={})
    found = folder.trials()
    assert [trial.state for trial in found] == ["finished", "stopped early", "running", "failed"]
    assert found[0].tokens == 2000
    assert found[0].value == 2.0
    best = best_trial(folder, found)
    assert best is not None
    assert best.number == 0, "a trial that has not finished is no match for one that has"
    folder.write_table()
    with folder.table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer.lr"] for row in rows] == ["0.001", "0.003", "", ""]
    assert folder.info()["trials"][1]["state"] == "stopped early"
    figure = tmp_path / "sweep.svg"
    plot_sweep(folder, figure)
    first = figure.read_bytes()
    plot_sweep(folder, figure)
    assert figure.read_bytes() == first, "the same data give the same figure"
    assert b"optimizer.lr" in first or b"<svg" in first


def test_tune_is_told_each_evaluation_of_a_run_and_its_end(tmp_path: Path) -> None:
    folder = new_sweep(tmp_path)
    run = add_trial(folder, 0, "finished", [3.0, 2.5, 2.0])
    plan: Any = SimpleNamespace(steps=30, tokens_at=lambda step: 100 * step)
    followed = _FollowedRun(Job(None, plan, run), folder, ended=True)  # type: ignore[arg-type]
    told = SweepTrial.__new__(SweepTrial)
    told._number, told._metric, told._folder, told._run = 0, METRIC, folder, followed
    common = {"run": run.id, "number": 0}
    assert told.step() == {"step": 10, "tokens": 1000, METRIC: 3.0, **common}
    assert told.step() == {"step": 20, "tokens": 2000, METRIC: 2.5, **common}
    assert told.step() == {"step": 30, "tokens": 3000, METRIC: 2.0, "done": True, "ended": True, **common}
    folder.request_stop()
    told._run = None
    assert told.step() == {"step": 0, "tokens": 0, "run": None, "number": 0, "done": True, "ended": True}


def test_sweeps_are_found_by_their_names(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(RunFolderError, match="there is none"):
        SweepFolder.open(runs, "latest")
    first, second = new_sweep(tmp_path), new_sweep(tmp_path)
    assert [one.id for one in list_sweeps(runs)] == [second.id, first.id]
    assert SweepFolder.open(runs, "latest").id == second.id
    assert SweepFolder.open(runs, first.id).path == first.path
    assert SweepFolder.open(runs, str(first.path)).path == first.path
    with pytest.raises(RunFolderError, match="the beginning of 2 sweeps"):
        SweepFolder.open(runs, "small")
    with pytest.raises(RunFolderError, match="is called 'other'"):
        SweepFolder.open(runs, "other")
    with pytest.raises(UsageError, match="no trial of"):
        require_best(first)


def test_a_driver_that_is_gone_is_seen(tmp_path: Path) -> None:
    folder = new_sweep(tmp_path)
    folder.update(state="running", driver={"host": os.uname().nodename, "pid": os.getpid()})
    assert folder.alive
    folder.update(driver={"host": os.uname().nodename, "pid": 2**22 + 1})
    assert not folder.alive
    add_trial(folder, 0, "running", [1.0])
    assert folder.trials()[0].state == "lost"
    assert not folder.stop_requested()
    folder.request_stop()
    assert folder.stop_requested()
    folder.clear_stop()
    assert not folder.stop_requested()


def trial(number: int, state: str, value: float | None, parameters: dict[str, Any]) -> TrialState:
    return TrialState(number, parameters, f"run-{number}", state, 10, 10, 100, value, 1, 1)


def test_optuna_is_told_what_was_measured_and_goes_on_with_what_was_not(tmp_path: Path) -> None:
    parameters = {
        "optimizer.lr": {"min": 1e-4, "max": 1e-1, "scale": "log"},
        "schedule.warmup": {"min": 1, "max": 50, "integer": True},
        "shape": {"settings": [{"model.dropout": 0.1, "train.seed": 1}, {"model.dropout": 0.0, "train.seed": 2}]},
    }
    folder = new_sweep(tmp_path, parameters=parameters, search={"name": "bayesian"}, budget={"trials": 5})
    values = {"optimizer.lr": 1e-3, "schedule.warmup": 5, "model.dropout": 0.0, "train.seed": 2}
    before = [
        trial(0, "finished", 2.0, values),
        trial(1, "lost", None, {**values, "schedule.warmup": 6}),
        trial(2, "failed", None, {**values, "optimizer.lr": 0.1}),
    ]
    search = Bayesian(folder.sweep(), before, {"sweep": "here"})
    first = search.suggest("a")
    assert first == {"sweep": "here", "number": 1, "parameters": {**values, "schedule.warmup": 6}}
    search.on_trial_complete("a", {METRIC: 1.0})
    suggested = [search.suggest("b"), search.suggest("c")]
    assert [config["number"] for config in suggested] == [3, 4]
    for config in suggested:
        found = config["parameters"]
        assert found.keys() == values.keys()
        assert 1e-4 <= found["optimizer.lr"] <= 1e-1
        assert isinstance(found["schedule.warmup"], int)
        assert (found["model.dropout"], found["train.seed"]) in {(0.1, 1), (0.0, 2)}
    search.on_trial_result("b", {METRIC: 1.5, "training_iteration": 1})
    search.on_trial_complete("b", {METRIC: 1.5, "training_iteration": 1})
    search.on_trial_complete("c", error=True)
    assert search.suggest("d") == Searcher.FINISHED
    assert len(search._optuna._ot_study.trials) == 3


def test_schedulers_know_their_settings(tmp_path: Path) -> None:
    asha = scheduler_of(new_sweep(tmp_path, stopping={"grace_steps": 100, "reduction_factor": 4}).sweep())
    milestones = [milestone for milestone, _ in asha._brackets[0]._rungs]
    assert milestones[-3:] == [1600, 400, 100]
    section = {"every": 50, "quantile": 0.5, "resample": 0.0}
    sweep = new_sweep(tmp_path, search={"name": "population"}, population=section, budget={"trials": 4}).sweep()
    population = scheduler_of(sweep)
    assert population._perturbation_interval == 50
    assert type(scheduler_of(new_sweep(tmp_path).sweep())).__name__ == "FIFOScheduler"


def test_values_of_a_population_stay_within_their_range(tmp_path: Path) -> None:
    section = {"every": 50, "resample": 0.0}
    parameters = {"optimizer.lr": {"min": 1e-3, "max": 1e-2, "scale": "log"}}
    settings = {"search": {"name": "population"}, "population": section, "budget": {"trials": 4}}
    scheduler = scheduler_of(new_sweep(tmp_path, parameters=parameters, **settings).sweep())
    assert scheduler._custom_explore_fn({"parameters": {"optimizer.lr": 1.2e-2}}) == {
        "parameters": {"optimizer.lr": 1e-2}
    }
    assert scheduler._custom_explore_fn({"parameters": {"optimizer.lr": 8e-4}}) == {
        "parameters": {"optimizer.lr": 1e-3}
    }


def test_a_damaged_checkpoint_is_not_taken_over(tmp_path: Path) -> None:
    job = tiny_job(tiny_recipe(write_corpus(tmp_path)), tmp_path / "runs")
    with pytest.raises(CheckpointError, match="cannot be taken over"):
        adopt(job, tmp_path / "step-00000010")
    (tmp_path / "step-00000010").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        adopt(job, tmp_path / "step-00000010")


class TuneTrial:
    """As much of Tune's trial as is asked of it."""

    trial_id = "a_00000"
    config: dict[str, Any] = {"number": 0, "parameters": {"optimizer.lr": 1e-3}}  # noqa: RUF012
    last_result: dict[str, Any] = {}  # noqa: RUF012


def test_a_budget_of_tokens_stops_what_runs(tmp_path: Path) -> None:
    said: list[str] = []
    folder = new_sweep(tmp_path, budget={"tokens": 1500})
    running = add_trial(folder, 0, "running", [3.0])
    progress = Progress(folder, folder.sweep(), said.append)
    assert not progress.stop_all(), "1000 tokens from before"
    result = {"run": running.id, "number": 0, "step": 15, "tokens": 1500, METRIC: 2.5}
    progress.on_trial_result(0, [], TuneTrial(), result)
    assert progress.stop_all()
    assert progress.reason == "budget used"
    assert running.stop_requested() == "interrupt"
    assert folder.stop_requested(), "trials that have not begun see it"
    progress.on_trial_complete(0, [], TuneTrial())
    assert folder.trials()[0].state != "stopped early", "the sweep ended it, not a scheduler"
    progress.close(progress.reason)
    assert folder.info()["state"] == "budget used"
    assert any("optimizer.lr=0.001" in line for line in said)


def test_a_scheduler_stops_a_trial(tmp_path: Path) -> None:
    folder = new_sweep(tmp_path)
    running = add_trial(folder, 0, "running", [3.0])
    progress = Progress(folder, folder.sweep(), lambda text: None)
    progress.on_trial_complete(0, [], TuneTrial())
    assert running.stop_requested() == "interrupt"
    assert folder.trials()[0].state == "stopped early"


def test_a_sweep_at_rest_does_not_wait_for_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardyard.cli.commands.sweep_run.REST_SECONDS", 0.0)
    folder = new_sweep(tmp_path)
    running = add_trial(folder, 0, "running", [3.0])
    at_rest = _at_rest(folder)
    assert [at_rest(), at_rest()] == [False, False], "nobody asked it to stop"
    folder.request_stop()
    assert [at_rest(), at_rest()] == [False, False], "a run is at work"
    running.update(driver={**running.info().driver, "pid": 2**22 + 1})
    assert at_rest(), "its process is gone"


def test_a_budget_of_seconds_counts_all_resumes(tmp_path: Path) -> None:
    folder = new_sweep(tmp_path, budget={"seconds": 60.0})
    assert not Progress(folder, folder.sweep(), lambda text: None).stop_all()
    folder.update(seconds=59.99)
    progress = Progress(folder, folder.sweep(), lambda text: None)
    until(progress.stop_all, "the last hundredth of a second is over")


LAW = Hoffmann(irreducible=1.2, a=40.0, b=300.0, alpha=0.4, beta=0.38)


@pytest.fixture
def ladder(tmp_path: Path) -> SweepFolder:
    """A finished ladder of four sizes and three numbers of tokens, with the losses of a known law."""
    test = {"model.config": {"n_layer": 2, "n_head": 4, "n_embd": 192, "n_positions": 256}, "train.steps": 600}
    folder = new_sweep(tmp_path, scaling_law={"test": test})
    number = 0
    for n in (30_000, 80_000, 200_000, 450_000):
        for count in (1, 4, 16):
            add_trial(folder, number, "finished", [LAW.loss(n, 1e6 * count)] * count, (n, n), 100_000)
            number += 1
    return folder


@pytest.mark.slow
def test_the_law_of_a_sweep_predicts_a_larger_model(ladder: SweepFolder, tmp_path: Path) -> None:
    fit = fit_sweep(ladder)
    assert fit.law.loss(1e6, 1e7) == pytest.approx(LAW.loss(1e6, 1e7), rel=1e-4)
    prediction = predict(ladder, fit, 12)
    assert prediction["parameters"] > 900_000
    assert prediction["tokens"] == 600 * 16 * 256
    ladder.update(prediction=prediction)
    assert judge(ladder, 12) is None
    add_trial(ladder, 12, "finished", [prediction["loss"] / 1.02], (1, prediction["parameters"]))
    judged = judge(ladder, 12)
    assert judged is not None
    assert judged["error"] == pytest.approx(0.02)
    assert len(fit_sweep(ladder).points) == 12, "the test is no part of the fit"
    plot_law(fit, tmp_path / "law.svg", judged)
    assert (tmp_path / "law.svg").stat().st_size < 100_000
    assert fit_sweep(ladder, form="kaplan").as_dict()["form"] == "kaplan"


def test_sweeps_read_their_own_settings_back(ladder: SweepFolder) -> None:
    assert isinstance(ladder.sweep(), Sweep)
    assert ladder.sweep().scaling_law is not None


def test_a_trial_waits_until_its_former_worker_has_let_go_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardyard.launch.sweep import run as sweep_run

    answers: list[BaseException | str] = [UsageError("held"), UsageError("held"), "taken"]

    def take(folder: RunFolder) -> str:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(sweep_run.Lease, "take", take)
    monkeypatch.setattr(sweep_run.time, "sleep", lambda seconds: None)
    assert sweep_run._lease_of(RunFolder(tmp_path)) == "taken"
    for never in (UsageError("held by a stranger"), RunFolderError("the disk is full")):
        answers[:] = [never] * 3
        monkeypatch.setattr(sweep_run, "LEASE_PATIENCE_SECONDS", -1.0)
        with pytest.raises(UsageError, match=str(never)):
            sweep_run._lease_of(RunFolder(tmp_path))
