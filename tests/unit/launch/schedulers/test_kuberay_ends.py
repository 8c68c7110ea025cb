"""How pods and jobs of KubeRay end: a last checkpoint before a pod goes, and no second life for a job that is over."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardyard.launch.jobs.spec import write_spec
from shardyard.launch.schedulers.kuberay import entry
from shardyard.launch.schedulers.kuberay import stop as kuberay_stop
from shardyard.tracking.run.folder import RunFolder
from support.waiting import PATIENCE_SECONDS, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kuberay_stop, "POLL_SECONDS", 0.01)


def a_run(runs: Path, state: str = "running", **fields: Any) -> RunFolder:
    folder = RunFolder.create(runs, "tiny", "", "", run_id="tiny-1")
    folder.update(state=state, **fields)
    return folder


def when_asked(folder: RunFolder, do: Callable[[], Any]) -> None:
    """Do something as soon as the run is asked to stop."""

    def wait() -> None:
        until(folder.stop_requested, "the run is asked to stop")
        do()

    threading.Thread(target=wait, daemon=True).start()


def test_a_pod_that_is_to_go_asks_for_a_checkpoint_and_waits(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    seen: list[str | None] = []

    def end() -> None:
        seen.append(folder.stop_requested())
        folder.update(state="preempted")

    when_asked(folder, end)
    assert kuberay_stop.main([str(folder.path), "300"]) == 0
    assert (seen, folder.state) == (["preempt"], "preempted")


def test_what_a_person_asked_for_stays(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    folder.request_stop("interrupt")
    assert kuberay_stop.main([str(folder.path), "0.05"]) == 1
    assert folder.stop_requested() == "interrupt"


def test_a_run_that_goes_on_elsewhere_is_not_waited_for(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    when_asked(folder, folder.clear_stop)
    assert kuberay_stop.main([str(folder.path), "300"]) == 0


@pytest.mark.parametrize("state", ["pending", "finished", "failed"])
def test_a_run_that_does_not_run_is_not_asked(tmp_path: Path, state: str) -> None:
    folder = a_run(tmp_path, state)
    assert kuberay_stop.main([str(folder.path), "10"]) == 0
    assert folder.stop_requested() is None


def test_a_run_that_never_began_is_not_waited_for(tmp_path: Path) -> None:
    assert kuberay_stop.main([str(tmp_path / "none"), "10"]) == 0


def test_the_pod_of_the_driver_tells_it_to_end(tmp_path: Path) -> None:
    # Named as the entrypoint is.
    script = (
        "import signal, time\nsignal.signal(15, lambda *_: exit(print('asked')))\nprint(flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", script, kuberay_stop.DRIVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        # A process of its own, for which the driver that has ended stays a zombie until this one asks for its code.
        stop = [sys.executable, "-m", "shardyard.launch.schedulers.kuberay.stop", str(tmp_path), "300", "--driver"]
        subprocess.run(stop, check=True, timeout=PATIENCE_SECONDS)
        assert driver.stdout.read() == b"asked\n"
    assert kuberay_stop.main([str(tmp_path), "8", "--driver"]) == 0, "nobody is left to wait for"


def spec_of(runs: Path, **fields: Any) -> dict[str, Any]:
    policy = {"retries": 0, "on_failed": "end", "on_timeout": "end", "on_preempted": "resume", "time_limit": None}
    return {"run_id": "tiny-1", "runs_dir": str(runs), "submitted": 5.0, "policy": policy, **fields}


@pytest.mark.parametrize("code", [0, 1, 124, 130])
def test_a_job_that_is_over_is_not_carried_out_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    a_run(tmp_path, "failed", exit_code=code, job={"submitted": 5.0})
    write_spec(spec_of(tmp_path), tmp_path / "job.json")
    assert entry.main([str(tmp_path / "job.json")]) == code
    assert f"has already ended with exit code {code}" in capsys.readouterr().err


def test_a_preempted_job_goes_on_where_the_recipe_wants_it(tmp_path: Path) -> None:
    a_run(tmp_path, "preempted", exit_code=143, job={"submitted": 5.0})
    spec = spec_of(tmp_path)
    assert entry.ended_with(spec) is None
    assert entry.ended_with({**spec, "policy": {**spec["policy"], "on_preempted": "end"}}) == 143


def test_a_run_that_is_submitted_again_is_another_job(tmp_path: Path) -> None:
    a_run(tmp_path, "failed", exit_code=1, job={"submitted": 4.0})
    assert entry.ended_with(spec_of(tmp_path)) is None


def test_a_job_without_a_run_folder_is_carried_out(tmp_path: Path) -> None:
    assert entry.ended_with(spec_of(tmp_path)) is None


def test_a_job_file_that_is_none_is_refused_by_the_entry(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shardyard.launch.schedulers.kuberay.entry", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert (done.returncode, "is not a job" in done.stderr) == (2, True)
