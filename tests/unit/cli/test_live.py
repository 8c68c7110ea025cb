"""What a person sees while a run trains, in a pipe and in a terminal; and the table of runs."""

import io
import json
import math
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shardyard.cli.main import run as shardyard
from shardyard.cli.view.live import LiveView
from shardyard.cli.view.plot import bars as sparkline
from shardyard.launch.describe import describe
from shardyard.launch.run.follow import follow
from shardyard.launch.run.progress import Progress
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run.events import (
    Attempt,
    AttemptFailed,
    CheckpointFailed,
    CheckpointSaved,
    DataRead,
    Evaluated,
    Finished,
    Length,
    WandbStatus,
    event_of,
)
from shardyard.tracking.run.folder import RunFolder
from support.waiting import PATIENCE_SECONDS

GOLDEN = """\
run-1: 40 steps
* training on 2 ranks
* W&B offline
 step     loss     eval       lr    grad   tok/s    time    wait    left
 1/40   3.0000           1.0e-03     1.5    8.2K  500 ms    2 ms
 2/40   2.9500           1.0e-03     1.5    8.2K  500 ms    2 ms    19 s
* failed on rank 1: killed
* restart: attempt 2 on 2 ranks from step 1
 2/40   2.9500           1.0e-03     1.5    8.2K  500 ms    2 ms
 4/40   2.8500   3.0000  1.0e-03     1.5    8.2K  500 ms    2 ms    18 s saved
 5/40   2.8000           1.0e-03     1.5    8.2K  500 ms    2 ms    18 s saved
* checkpoint at step 3 failed: disk full
40/40      nan           1.0e-03     1.5    8.2K  500 ms    2 ms     0 s
* finished at step 40
"""


SHOWN = (
    *("run-1", "step 40/40", "100%", "train loss", "eval loss", "3.0000", "learning rate", "1.00e-03", "grad norm"),
    *("tokens/s", "8.2K", "step time", "500 ms", "data wait", "time left", "attempt", "finished at step 40"),
)


def _line(step: int, **more: float) -> dict[str, Any]:
    metrics = {
        "train/loss": 3.05 - step / 20,
        "train/lr": 1e-3,
        "train/grad_norm": 1.5,
        "perf/tokens_per_second": 8192.0,
    }
    return {
        "step": step,
        "time": step / 2,
        **metrics,
        "perf/step_seconds": 0.5,
        "perf/data_wait_seconds": 0.002,
        **more,
    }


def _tell(view: LiveView) -> None:
    view.on_events([Attempt(number=1, world_size=2, resumed_step=0)])
    view.on_events([WandbStatus(mode="offline", folder="runs/run-1/wandb")])
    view.on_metrics([_line(1), _line(2)])
    view.on_events([AttemptFailed(causes=[{"message": "killed", "ranks": [1]}], ranks=(1,))])
    view.on_events([Attempt(number=2, world_size=2, resumed_step=1)])
    view.on_metrics([_line(2), _line(3), _line(4)])
    view.on_events([Evaluated(step=4, loss=3.0), CheckpointSaved(step=4, bytes=10)])
    view.on_metrics([{"step": 4, "time": 2.1, "eval/validation/loss": 3.0}, _line(5)])
    view.on_events([CheckpointSaved(step=5), CheckpointFailed(step=3, error="disk full")])
    view.on_metrics([_line(40, **{"train/loss": math.nan})])
    view.on_events([Finished(step=40)])


def test_a_pipe_gets_aligned_lines() -> None:
    stream = io.StringIO()
    with LiveView(stream, "run-1", 40) as view:
        _tell(view)
    assert stream.getvalue() == GOLDEN
    assert max(map(len, stream.getvalue().splitlines())) <= 80


@pytest.mark.parametrize(("steps", "every"), [(200, 1), (200, 7), (100_000, 100), (15, 1)])
def test_a_long_run_takes_about_25_lines(steps: int, every: int) -> None:
    stream = io.StringIO()
    with LiveView(stream, "run-1", steps) as view:
        for step in range(every, steps + 1, every):
            view.on_metrics([_line(step, **{"perf/mfu": 0.4})])
            if step % (steps // 5 // every * every) == 0:
                view.on_events([Evaluated(step=step, loss=2.0), CheckpointSaved(step=step)])
    lines = stream.getvalue().splitlines()
    assert 15 <= len(lines) <= 32
    assert max(map(len, lines)) <= 100
    assert "MFU" in lines[1]
    assert lines[-1].split()[0] == f"{steps // every * every}/{steps}"


def test_a_message_stands_between_the_lines() -> None:
    stream = io.StringIO()
    with LiveView(stream, "run-1", 40) as view:
        view.on_metrics([_line(1)])
        view.message("[bold]stopping[/bold]")
    assert stream.getvalue().splitlines()[-1] == "[bold]stopping[/bold]"


def _terminal(monkeypatch: pytest.MonkeyPatch, width: int = 100, **variables: str) -> str:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(file=stream, force_terminal=True, width=width, height=40)
    with LiveView(console, "run-1", 40) as view:
        _tell(view)
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


def test_what_libraries_print_is_not_shown_above_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both streams lead to driver.log while a run is driven."""
    log, screen = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with LiveView(Console(file=screen, force_terminal=True, width=100, height=40), "run-1", 40) as view:
        _tell(view)
        sys.stderr.write("Requesting resources\n")
    assert log.getvalue() == "Requesting resources\n"
    assert "Requesting" not in screen.getvalue()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_gets_a_panel_with_all_numbers(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown = _terminal(monkeypatch, width)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    last = plain[plain.rindex("╭") :]
    for text in SHOWN:
        assert text in last, text
    assert "MFU" not in last, "unknown hardware shows none"
    assert all(len(line) <= min(width, 100) for line in last.replace("\r", "").splitlines())
    assert "failed on rank 1: killed" in plain, "a failure stays on the screen"
    assert "\x1b[1;31m" in shown or "\x1b[31m" in shown


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _terminal(monkeypatch, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m", shown)


def test_a_sparkline_shows_means_and_gaps() -> None:
    assert sparkline([1.0, 2.0, 3.0, 8.0], 4) == "▁▂▃█"
    assert sparkline([1.0, 1.0, 8.0, 8.0], 2) == "▁█"
    assert sparkline([1.0, math.nan, 8.0], 3) == "▁ █"
    assert sparkline([math.nan], 3) == ""


def test_a_time_budget_tells_the_last_step() -> None:
    stream = io.StringIO()
    with LiveView(stream, "budgeted", 500) as view:
        view.on_events([Length(steps=400, text="4.5 minutes hold 400 of 500 steps")])
        view.on_metrics([_line(400)])
    assert "4.5 minutes hold 400 of 500 steps" in stream.getvalue()
    assert "400/400" in stream.getvalue()


def test_time_left_follows_the_newest_pace() -> None:
    progress = Progress("run-1", 100)
    assert progress.seconds_left() is None
    for step in (1, 2, 3):
        progress.add_metrics({"step": step, "time": 10.0 * step, "train/loss": 1.0})
    assert progress.seconds_left() == pytest.approx(970.0)
    progress.add_event(Attempt(number=2))
    assert progress.seconds_left() is None, "the time between two attempts is no pace"


@pytest.mark.parametrize(
    ("event", "text"),
    [({"kind": "checkpoint", "step": 5, "bytes": 2048, "seconds": 0.5}, "checkpoint at step 5 (2.0 KiB, 500 ms)"),
     ({"kind": "checkpoint", "step": 5, "seconds": math.nan}, "checkpoint at step 5"),
     ({"kind": "early_stop", "metric": "eval/v/loss", "best": 1.5, "step": 9},
      "stopped early at step 9: eval/v/loss no longer improves on 1.5000"),
     ({"kind": "attempt", "number": 1, "world_size": 1, "resumed_step": 7}, "training on 1 rank from step 7"),
     ({"kind": "attempt", "number": 2, "world_size": 1}, "restart: attempt 2 on 1 rank from the beginning"),
     ({"kind": "evaluation", "step": 2, "loss": math.inf}, "evaluation at step 2: loss inf"),
     ({"kind": "notice", "text": "hello"}, "hello"), ({"kind": "something_new"}, "something_new")],
)  # fmt: skip
def test_events_read_as_sentences(event: dict[str, Any], text: str) -> None:
    assert describe(event_of(event)) == text


def test_watch_follows_a_run_folder_in_the_order_of_its_times(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "gpt", "a", "b")
    stream, stop = io.StringIO(), threading.Event()
    with LiveView(stream, folder.id, 20) as view:
        watcher = threading.Thread(target=follow, args=(folder, view, stop, 0.01))
        watcher.start()
        with Tracker(folder) as tracker:
            tracker.event(Attempt(number=1, world_size=1, resumed_step=0))
            for step in range(1, 21):
                tracker.record(StepRecord(step, {"train/loss": 1.0}))
                if step % 10 == 0:
                    tracker.event(CheckpointSaved(step=step, path="x", seconds=0.1, bytes=10))
            tracker.event(Finished(step=20))
        stop.set()
        watcher.join(timeout=PATIENCE_SECONDS)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "* training on 1 rank"
    assert [line.split()[0] for line in lines[3:-1]] == [f"{step}/20" for step in range(1, 21)]
    assert [line.split()[0] for line in lines if line.endswith("saved")] == ["10/20", "20/20"]
    assert lines[-1] == "* finished at step 20"


def test_watch_of_a_resumed_run_leaves_its_past_out(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "gpt", "a", "b")
    with Tracker(folder) as tracker:
        tracker.event(Finished(step=3))
    stream, stop = io.StringIO(), threading.Event()
    stop.set()
    with LiveView(stream, folder.id, 20, resumed_step=3) as view:
        follow(folder, view, stop, from_start=False)
        assert "finished" not in stream.getvalue()
        follow(folder, view, stop)
    assert "finished" in stream.getvalue()


@pytest.fixture
def two_runs(tmp_path: Path) -> list[RunFolder]:
    made = []
    for name, state in (("first", "finished"), ("second", "failed")):
        made.append(RunFolder.create(tmp_path, name, "a", "b", total_steps=40, world_size=2))
        with Tracker(made[-1]) as tracker:
            tracker.record(StepRecord(7, {"train/loss": math.nan if name == "second" else 1.5}))
            tracker.record(StepRecord(7, {"eval/validation/loss": 2.5}))
        made[-1].update(state=state)
    return made


def test_runs_lists_the_newest_first(
    tmp_path: Path, two_runs: list[RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two_runs
    assert shardyard(["runs", "--runs-dir", str(tmp_path)]) == 0
    rows = [line.split("\t")[:5] for line in capsys.readouterr().out.splitlines()]
    assert rows == [[second.id, "failed", "7/40", "nan", "2.5000"], [first.id, "finished", "7/40", "1.5000", "2.5000"]]
    assert shardyard(["runs", "--runs-dir", str(tmp_path), "-q"]) == 0
    assert capsys.readouterr().out.split() == [second.id, first.id]
    assert shardyard(["runs", "--runs-dir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [run["loss"] for run in found] == ["NaN", 1.5]


def test_runs_shows_one_run(tmp_path: Path, two_runs: list[RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    assert shardyard(["runs", "first", "--runs-dir", str(tmp_path)]) == 0
    shown = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert (shown["run"], shown["step"], shown["loss"], shown["ranks"]) == (two_runs[0].id, "7/40", "1.5000", "2")
    assert shardyard(["runs", "third", "--runs-dir", str(tmp_path)]) == 2
    assert "Nearest" in capsys.readouterr().err


def test_no_runs_is_said_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shardyard(["runs", "--runs-dir", str(tmp_path)]) == 0
    assert f"There are no runs in {tmp_path}. Start" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["runs"], ["runs", "-q"], ["compare", "a", "b"], ["sweep", "list"], ["wandb", "sync", "--all"]]
)
def test_a_runs_folder_that_is_not_there_is_said(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shardyard([*command, "--runs-dir", str(tmp_path / "none")]) == 2
    assert f"the runs folder {tmp_path}/none, given by --runs-dir, does not exist" in capsys.readouterr().err
    monkeypatch.setenv("SHARDYARD_RUNS", str(tmp_path / "gone"))
    assert shardyard(command) == 2
    assert f"the runs folder {tmp_path}/gone, given by SHARDYARD_RUNS, does not exist" in capsys.readouterr().err


def test_the_default_runs_folder_need_not_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARDYARD_RUNS", raising=False)
    assert shardyard(["runs"]) == 0
    assert f"There is no runs folder {tmp_path}/runs yet. Start" in capsys.readouterr().err
    assert shardyard(["watch", "latest"]) == 2
    assert f"The runs folder {tmp_path}/runs is not there. Start" in capsys.readouterr().err


def test_what_reading_left_out_is_told_and_nothing_else() -> None:
    assert describe(DataRead(skipped=0, retries=0)) == ""
    assert describe(DataRead(skipped=3, retries=1)) == "data: 3 examples skipped, 1 retries"
    ranks = [{"sources": [{"epochs": 1}, {"epochs": 2}]}]
    assert describe(DataRead(unusable=9, cut=4, empty_streams=1, ranks=ranks)) == (
        "data: 9 unusable rows left out in 3 passes over the data, 1 streams without rows of their own, which read the "
        "whole source, 4 tokens cut off"
    )
    left_out = describe(DataRead(unusable=2, without_target=1, named=("a.jsonl, row 1: no target", "…")))
    assert left_out == (
        "data: 2 unusable rows left out, 1 rows without a target left out (a.jsonl, row 1: no target; …)"
    )
