"""Sweeps on Ray Tune: killed and resumed, early stopping, Optuna, populations; the best trial launched again."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from shardyard.launch.sweep.folder import SweepFolder, TrialState, list_sweeps
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.cli import Command, write_recipe
from support.hold import held_by
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1500)]

METRIC = "eval/validation/loss"
STEPS = 36
EVALUATED = 12  # first evaluation
HELD = EVALUATED - 3
ENDED = ("finished", "stopped early")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def write_sweep(folder: Path, corpus: Path, **sections: Any) -> Path:
    """A sweep of a tiny recipe of one rank, beside it."""
    write_recipe(
        folder,
        corpus,
        cluster={"workers": 1},
        train={"steps": STEPS},
        zero={"stage": 1},
        evaluate={"every": EVALUATED, "rows": 8},
        checkpoint={"every": 6},
        sample={"prompts": []},
        hooks=held_by(folder / "held"),
    )
    path = folder / "sweep.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump({"name": "small", "recipe": "tiny.yaml", "parallel": 2, **sections}, file)
    return path


def only_sweep(runs: Path) -> SweepFolder:
    (folder,) = list_sweeps(runs)
    return folder


def run_of(folder: SweepFolder, trial: TrialState) -> RunFolder:
    found = folder.run_of(trial.number)
    assert found is not None
    return found


def states(runs: Path) -> list[TrialState]:
    return [trial for folder in list_sweeps(runs) for trial in folder.trials()]


def saved(run: RunFolder) -> bool:
    return any(run.checkpoints.glob("step-*/manifest.json"))


def two_have_ended(runs: Path) -> bool:
    return sum(trial.state in ENDED for trial in states(runs)) >= 2


def one_is_held(runs: Path) -> bool:
    """A trial that is held has a checkpoint to go on from, and no evaluation by which it may be stopped early. One that
    was past that step when it was named goes on, and may have ended before it is killed."""
    running = [trial for trial in states(runs) if trial.state == "running" and trial.run is not None]
    return any(trial.step <= HELD and saved(run_of(only_sweep(runs), trial)) for trial in running)


def found_dead(runs: Path, trial: TrialState) -> dict[str, Any]:
    """run.json of a trial whose sweep was killed; whether it had ended, or was cut off before its first evaluation."""
    run = run_of(only_sweep(runs), trial)
    ended = trial.state in ENDED
    return {**run.info().raw, "had ended": ended, "cut off": saved(run) and not ended and trial.step < EVALUATED}


def wait_until_gone(processes: dict[psutil.Process, str], seconds: float = PATIENCE_SECONDS) -> None:
    """Trials and raylet end with the driver. Ray's agents outlive them for a minute and are ended here."""
    agents = [process for process, name in processes.items() if "Agent" in name]
    _, alive = psutil.wait_procs([process for process in processes if process not in agents], timeout=seconds)
    for process in agents:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not alive, alive


def names_of(processes: list[psutil.Process]) -> dict[psutil.Process, str]:
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process] = " ".join(process.cmdline()) or process.name()
    return found


@pytest.fixture(scope="module")
def resumed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepFolder, dict[str, Any], str]:
    """8 trials with ASHA, the driver killed in the middle; what had ended by then, and what the resume printed."""
    folder = tmp_path_factory.mktemp("sweep")
    # The useless learning rates come last, so that a better one is there to compare them with.
    path = write_sweep(
        folder,
        corpus,
        parameters={
            "optimizer.lr": {"values": [3e-3, 1e-2, 1e-5, 1e-4]},
            "train.seed": {"values": [7, 8]},
        },
        stopping={"grace_steps": EVALUATED, "reduction_factor": 3},
    )
    runs, held = folder / "runs", folder / "held"
    with Command("sweep", path, runs=runs) as command:
        command.wait_for(lambda: two_have_ended(runs))
        # Those that have not come so far wait here, and are killed here.
        held.write_text(str(HELD))
        command.wait_for(lambda: one_is_held(runs))
        started = names_of(command.descendants())
        command.process.kill()
        command.finish()
        wait_until_gone(started)
    held.unlink()
    before = {trial.run: found_dead(runs, trial) for trial in states(runs) if trial.run is not None}
    with Command("sweep", "resume", "latest", runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    return only_sweep(runs), before, output


def test_a_killed_sweep_ends_when_it_is_resumed(resumed: tuple[SweepFolder, dict[str, Any], str]) -> None:
    folder, _, output = resumed
    trials = folder.trials()
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.state for trial in trials} == {"finished", "stopped early"}, trials
    assert len({json.dumps(trial.parameters) for trial in trials}) == 8
    assert folder.info()["state"] == "finished"
    assert "shardyard sweep best" in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 90, output
    stopped = [trial for trial in trials if trial.state == "stopped early"]
    assert {trial.number for trial in stopped} >= {4, 5, 6, 7}, trials
    assert all(trial.step < STEPS for trial in stopped)


def test_what_had_ended_is_not_trained_again(resumed: tuple[SweepFolder, dict[str, Any], str]) -> None:
    folder, before, _ = resumed
    after = {trial.run: run_of(folder, trial).info() for trial in folder.trials()}
    for run, info in before.items():
        if info["had ended"]:
            assert after[run].attempts == info["attempts"] == 1
            assert after[run].ended == info["ended"]
    assert len(after) == 8
    assert sum(info["had ended"] for info in before.values()) >= 2
    # What was cut off before anything could be decided about it went on from its newest checkpoint, in its folder.
    again = [after[run].attempts for run, info in before.items() if info["cut off"]]
    assert len(again) >= 1
    assert set(again) == {2}
    for trial in folder.trials():
        steps = [line["step"] for line in read_metrics(run_of(folder, trial).metrics)]
        assert steps == list(range(1, trial.step + 1)), trial


def test_each_trial_is_an_ordinary_run(resumed: tuple[SweepFolder, dict[str, Any], str]) -> None:
    folder, _, _ = resumed
    trial = folder.trials()[5]
    run = run_of(folder, trial)
    info = run.info()
    assert info.name == "small-005"
    assert info.sweep == {"id": folder.id, "trial": 5, "parameters": trial.parameters}
    assert info.plan["architecture"]["parameters"] > 0
    # Fixed once for all trials, wherever each of them runs.
    assert f"\n  precision: {info.plan['precision']}\n" in folder.base.read_text()
    assert f"group: {folder.id}" in run.resolved.read_text()
    assert list(run.checkpoints.glob("step-*"))
    with Command("runs", run.id, runs=folder.runs_dir) as command:
        code, output = command.finish()
    assert code == 0, output


def test_the_best_trial_launched_again_is_the_same(
    resumed: tuple[SweepFolder, dict[str, Any], str], tmp_path: Path
) -> None:
    folder, _, _ = resumed
    recipe = tmp_path / "best.yaml"
    with Command("sweep", "best", folder.id, "--out", recipe, runs=folder.runs_dir) as command:
        code, output = command.finish()
    assert code == 0, output
    with Command("launch", recipe, "--local", runs=tmp_path / "runs") as command:
        code, output = command.finish()
        assert code == 0, output
        again = RunFolder(command.folder)
    finished = [trial for trial in folder.trials() if trial.state == "finished"]
    best = min(finished, key=lambda trial: trial.value or 0.0)
    trained = run_of(folder, best)
    losses = {line["step"]: line[METRIC] for line in read_metrics(trained.metrics) if METRIC in line}
    assert losses == {line["step"]: line[METRIC] for line in read_metrics(again.metrics) if METRIC in line}
    ours = load_file(again.final / "model.safetensors")
    theirs = load_file(trained.final / "model.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_the_result_is_a_table_and_an_image(resumed: tuple[SweepFolder, dict[str, Any], str], tmp_path: Path) -> None:
    folder, _, _ = resumed
    with Command("sweep", "show", "latest", "--plot", tmp_path / "plot.png", runs=folder.runs_dir) as command:
        code, output = command.finish()
    assert code == 0, output
    rows = [line.split("\t") for line in output.splitlines() if "\t" in line]
    assert len(rows) == 8
    values = [float(row[3]) for row in rows if row[1] == "finished"]
    assert values == sorted(values), "the best comes first"
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    with folder.table.open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 8
    assert {row["state"] for row in table} == {"finished", "stopped early"}
    assert float(table[0]["optimizer.lr"]) == 3e-3


def test_optuna_goes_on_after_sigterm(corpus: Path, tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        corpus,
        parameters={
            "optimizer.lr": {"min": 1e-4, "max": 1e-2, "scale": "log"},
            "shape": {"settings": [{"model.config.n_head": 1}, {"model.config.n_head": 2}]},
        },
        search={"name": "bayesian", "seed": 1},
        budget={"trials": 4},
    )
    runs = tmp_path / "runs"
    with Command("sweep", path, "-s", "train.steps=150", "-s", "evaluate.every=75", runs=runs) as command:
        command.wait_for(lambda: any(read_metrics(file) for file in runs.glob("*/metrics.jsonl")))
        command.process.send_signal(signal.SIGTERM)
        code, output = command.finish()
    assert code == 143, output
    assert "sweep resume" in output
    folder = only_sweep(runs)
    assert folder.info()["state"] == "stopped"
    first = {trial.number: trial for trial in folder.trials()}
    begun = [trial for trial in first.values() if trial.step]
    assert 1 <= len(begun) <= 2
    for trial in begun:
        assert trial.state == "interrupted"
        assert list(run_of(folder, trial).checkpoints.glob("step-*"))
    with Command("sweep", "resume", "latest", "-q", runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    assert output.strip() == folder.id
    trials = folder.trials()
    assert [trial.state for trial in trials] == ["finished"] * 4, trials
    # What was suggested before keeps its values, and what was trained its steps.
    assert all(trials[number].parameters == trial.parameters for number, trial in first.items())
    assert all(run_of(folder, trials[trial.number]).info().attempts == 2 for trial in begun)
    assert len({trial.parameters["optimizer.lr"] for trial in trials}) == 4
    assert {trial.parameters["model.config.n_head"] for trial in trials} <= {1, 2}


def test_a_population_takes_over_what_is_better(corpus: Path, tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        corpus,
        parameters={"optimizer.lr": {"values": [1e-7, 3e-7, 3e-3, 1e-2]}},
        search={"name": "population", "seed": 2},
        population={"every": 12, "quantile": 0.5, "resample": 0.0},
        budget={"trials": 3},
    )
    with Command("sweep", path, runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    folder = only_sweep(tmp_path / "runs")
    trials = folder.trials()
    assert [trial.state for trial in trials] == ["finished"] * 3, (trials, output)
    followers = [run for trial in trials if "took_over" in (run := run_of(folder, trial)).info().sweep]
    assert followers, output
    for run in followers:
        info = run.info()
        assert info.sweep["took_over"][0] != info.sweep["trial"]
        rates = [line["train/lr"] for line in read_metrics(run.metrics) if line["step"] > STEPS - 12]
        # The cosine schedule of the new peak, not of the one that the run began with.
        assert max(rates) <= info.sweep["parameters"]["optimizer.lr"]
        assert max(rates) > 0.05 * info.sweep["parameters"]["optimizer.lr"]
