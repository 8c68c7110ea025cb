"""The run folder: created once, found by name, updated whole, stopped on request."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from shardyard.errors import RunFolderError
from shardyard.tracking.files import JsonlWriter
from shardyard.tracking.run.folder import RunFolder, list_runs, read_metrics, runs_folder
from shardyard.tracking.run.summary import newest_metrics, summarize


def _run(folder: Path, name: str = "gpt", **fields: object) -> RunFolder:
    return RunFolder.create(folder, name, "name: gpt\n", "name: gpt\nall: 1\n", **fields)


def test_a_new_run_has_its_files_and_an_id_of_its_own(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "deep" / "runs", total_steps=20) for _ in range(20)]
    assert len({run.id for run in runs}) == 20
    assert re.fullmatch(r"gpt-\d{8}-\d{6}-[0-9a-f]{4}", runs[0].id)
    assert runs[0].recipe.read_text() == "name: gpt\n"
    assert runs[0].resolved.read_text() == "name: gpt\nall: 1\n"
    assert runs[0].logs.is_dir()
    info = runs[0].info()
    assert (info.state, info.total_steps, info.attempts) == ("pending", 20, 0)
    assert str(info.created).endswith("+00:00")


def test_an_existing_folder_is_never_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["aaaa", "aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(
        "shardyard.tracking.run.folder.secrets.token_hex", lambda size: next(answers) if size == 2 else "t"
    )

    class Fixed:
        @staticmethod
        def now(zone: object) -> object:
            from datetime import UTC, datetime

            return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    monkeypatch.setattr("shardyard.tracking.run.folder.datetime", Fixed)
    assert _run(tmp_path).id == "gpt-20260102-030405-aaaa"
    assert _run(tmp_path).id == "gpt-20260102-030405-bbbb"


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a b", "x" * 81])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="cannot name a run"):
        _run(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_runs_folder_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "runs", Path("/proc/runs")):
        with pytest.raises(RunFolderError, match=r"cannot be written: .*--runs-dir or SHARDYARD_RUNS"):
            _run(place)


def test_a_full_disk_leaves_no_half_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left on device"):
        _run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_runs_are_found_by_id_prefix_path_and_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _run(tmp_path, "alpha"), _run(tmp_path, "beta")
    (tmp_path / "no-run").mkdir()
    assert list_runs(tmp_path) == [second, first]
    for name in (first.id, "alpha", "a", str(first.path), f"{first.path}/", first.path):
        assert RunFolder.open(tmp_path, name) == first
    assert RunFolder.open(tmp_path, "latest") == second
    monkeypatch.chdir(tmp_path)
    assert RunFolder.open(Path("/nowhere"), f"./{first.id}") == first


def test_latest_is_no_start_that_failed(tmp_path: Path) -> None:
    failed = _run(tmp_path, "broken")
    failed.update(state="failed")
    assert RunFolder.open(tmp_path, "latest") == failed  # there is no other
    trained, second = _run(tmp_path, "trained"), _run(tmp_path, "broken")
    trained.metrics.write_text('{"step": 1}\n')
    trained.update(state="failed")
    for state in ("failed", "interrupted", "preempted"):
        second.update(state=state)
        assert RunFolder.open(tmp_path, "latest") == trained
    # What waits, trains or has finished is meant.
    waiting = _run(tmp_path, "waiting")
    assert RunFolder.open(tmp_path, "latest") == waiting
    waiting.update(state="running")
    assert RunFolder.open(tmp_path, "latest") == waiting
    assert [run.state for run in list_runs(tmp_path)] == ["running", "preempted", "failed", "failed"]


def test_names_that_lead_nowhere_are_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"There are no runs in .*shardyard launch"):
        RunFolder.open(tmp_path, "latest")
    first, second = _run(tmp_path, "gpt-small"), _run(tmp_path, "gpt-large")
    with pytest.raises(RunFolderError, match=f"Nearest: {first.id}"):
        RunFolder.open(tmp_path, "gpt-smal1")
    with pytest.raises(RunFolderError, match=r"beginning of 2 runs") as caught:
        RunFolder.open(tmp_path, "gpt")
    assert first.id in str(caught.value)
    assert second.id in str(caught.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        RunFolder.open(tmp_path, tmp_path / "other")


def test_the_runs_folder_is_option_then_variable_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDYARD_RUNS", raising=False)
    assert runs_folder() == tmp_path / "runs"
    monkeypatch.setenv("SHARDYARD_RUNS", str(tmp_path / "variable"))
    assert runs_folder() == tmp_path / "variable"
    assert runs_folder(tmp_path / "option") == tmp_path / "option"


def test_states_set_their_times_and_keep_what_others_wrote(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.update(state="running", attempts=1)
    started = run.info().started
    run.update(step=5)
    run.update(state="failed")
    assert run.info().ended is not None
    run.update(state="running", attempts=2)
    info = run.info()
    assert (info.state, info.step, info.attempts, info.started, info.ended) == ("running", 5, 2, started, None)
    with pytest.raises(AssertionError):
        run.update(state="sleeping")


def test_updates_of_several_processes_do_not_undo_one_another(tmp_path: Path) -> None:
    run = _run(tmp_path)
    children = []
    for who in range(4):
        if (child := os.fork()) == 0:
            for turn in range(25):
                run.update(**{f"field{who}": turn})
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert [run.info().raw[f"field{who}"] for who in range(4)] == [24] * 4


def test_a_broken_run_json_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = _run(tmp_path)
    run.info_file.write_text("{")
    with pytest.raises(RunFolderError, match=r"run\.json cannot be read"):
        run.info()
    run.info_file.write_text("[]")
    with pytest.raises(RunFolderError, match="is not a JSON object"):
        run.info()


def test_a_stop_request_is_seen_and_forgotten(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert run.stop_requested() is None
    run.request_stop("interrupt")
    assert RunFolder(run.path).stop_requested() == "interrupt"
    run.request_stop("preempt")
    assert run.stop_requested() == "preempt"
    run.clear_stop()
    run.clear_stop()
    assert run.stop_requested() is None
    (run.path / "stop.json").touch()
    assert run.stop_requested() == "interrupt", "a file made by hand is a request too"


def test_asking_for_a_stop_request_is_cheap(tmp_path: Path) -> None:
    run = _run(tmp_path)
    begin = time.process_time()
    for _ in range(1000):
        run.stop_requested()
    assert (time.process_time() - begin) / 1000 < 100e-6


def test_later_values_of_a_step_replace_earlier_ones(tmp_path: Path) -> None:
    lines = JsonlWriter(tmp_path / "metrics.jsonl")
    for step, loss in [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5)]:
        lines.append({"step": step, "train/loss": loss})
    lines.append({"step": 3, "eval/validation/loss": 3.6})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 5.0},
        {"step": 2, "train/loss": 4.5},
        {"step": 3, "train/loss": 3.5, "eval/validation/loss": 3.6},
    ]
    assert read_metrics(tmp_path / "nothing.jsonl") == []


def test_a_summary_reads_the_end_of_long_files(tmp_path: Path) -> None:
    run = _run(tmp_path, total_steps=3000)
    lines = JsonlWriter(run.metrics)
    lines.append({"step": 1, "train/loss": 9.0, "eval/validation/loss": 8.0})
    for step in range(2, 3001):
        lines.append({"step": step, "train/loss": 1.0 + 1 / step, "filler": "f" * 50})
    summary = summarize(run)
    assert (summary.step, summary.total_steps, summary.eval_loss) == (3000, 3000, 8.0)
    assert summary.loss == pytest.approx(1.0 + 1 / 3000)
    assert newest_metrics(run)["step"] == 3000


def test_a_running_run_without_its_driver_is_lost(tmp_path: Path) -> None:
    run = _run(tmp_path)
    if (child := os.fork()) == 0:
        run.update(state="running")
        os._exit(0)
    os.waitpid(child, 0)
    assert run.state == "running"
    assert summarize(run).state == "lost"
    run.update(state="running")
    assert summarize(run).state == "running"
    info = json.loads(run.info_file.read_text())
    run.update(driver={**info["driver"], "host": "elsewhere", "pid": 999999999})
    assert summarize(run).state == "running", "nothing is known about processes of other hosts"
    run.update(driver={**info["driver"], "pid_namespace": "pid:[1]", "pid": 999999999})
    assert summarize(run).state == "running", "nor about those of a job that has pids of its own"


def test_a_folder_that_only_has_a_log_is_no_run_yet(tmp_path: Path) -> None:
    """A scheduler writes the log of a job before the job makes its run."""
    (tmp_path / "mine" / "logs").mkdir(parents=True)
    (tmp_path / "mine" / "logs" / "slurm.log").write_text("here")
    run = RunFolder.create(tmp_path, "tiny", "", "", run_id="mine")
    assert (run.logs / "slurm.log").read_text() == "here"
    with pytest.raises(RunFolderError, match=f"`shardyard resume {run.path}`"):
        RunFolder.create(tmp_path, "tiny", "", "", run_id="mine")
