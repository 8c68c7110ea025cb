"""The entry point of jobs as a process: turns, retries, time limits and signals, with a driver that does as told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.launch.jobs.spec import policy_of, write_spec
from shardyard.launch.ray.queue import QueueSlot, queue_folder, slot_path
from shardyard.recipe.loading.load import load_recipe
from support.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ADDRESS = "127.0.0.1:1"
PROGRAM = (
    "import sys; from shardyard.launch.jobs import entry; entry.DRIVER = 'support.fake_driver'; "
    "entry.GRACE_SECONDS = 1.0; sys.exit(entry.main(sys.argv[1:]))"
)


class Jobs:
    """Starts entry points that share a queue, and ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, name: str, *words: str, submitted: float = 1.0, **job: Any) -> subprocess.Popen[str]:
        """Start the entry point of a job whose driver does these words."""
        overrides = [f"job.{key}={value}" for key, value in job.items()]
        spec = {
            "run_id": name,
            "runs_dir": str(self.folder / "runs"),
            "policy": policy_of(load_recipe("gpt/quickstart", overrides).recipe),
            "submitted": submitted,
            "job_name": name,
            "name": "tiny",
            "recipe_text": "",
            "resolved_text": "",
            "plan": {"steps": 3},
        }
        path = self.folder / f"{name}.json"
        write_spec(spec, path)
        # The drivers are a module of the tests.
        search = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        environment = {
            "PYTHONPATH": search,
            "FAKE_LOG": str(self.log),
            "FAKE_DRIVER": " ".join(words),
            "TMPDIR": str(self.folder),
        }
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment, "RAY_ADDRESS": ADDRESS},
        )
        self._started.append(process)
        return process

    def info(self, name: str) -> dict[str, Any]:
        """run.json of a job."""
        info: dict[str, Any] = json.loads((self.folder / "runs" / name / "run.json").read_text())
        return info

    def attempts(self) -> list[str]:
        """`job word` of each start of a driver so far."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, count: int) -> None:
        """Until so many drivers have started."""
        until(
            lambda: len(self.attempts()) >= count,
            lambda: f"{count} drivers: {[self.attempts(), *(p.poll() for p in self._started)]}",
        )

    def end(self) -> None:
        """End everything that was started."""
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    yield jobs
    jobs.end()


def test_retries_go_on_with_the_same_run_until_they_are_used_up(jobs: Jobs) -> None:
    process = jobs.start("a", "1", "die", "1", "0", retries=2, on_failed="resume")
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1, output
    assert jobs.attempts() == ["a 1", "a die", "a 1"]
    assert "retry 1 of 2" in output
    assert "signal 9" in output
    assert "job.retries is 2 and used up" in output
    info = jobs.info("a")
    assert (info["state"], info["exit_code"], info["job"]["retries"]) == ("failed", 1, 2)


def test_a_time_limit_ends_with_124_and_may_be_followed_by_another_attempt(jobs: Jobs) -> None:
    process = jobs.start("a", "stop", "0", time_limit="0.5s", retries=1, on_timeout="resume")
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    assert "time limit reached" in output
    assert jobs.attempts() == ["a stop", "a 0"]
    deaf = jobs.start("b", "deaf", time_limit="0.5s")
    output, _ = deaf.communicate(timeout=PATIENCE_SECONDS)
    assert deaf.returncode == 124, output
    assert jobs.info("b")["state"] == "interrupted"


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "preempted")]
)
def test_signals_to_the_entry_reach_the_run_and_are_never_retried(
    jobs: Jobs, number: signal.Signals, code: int, state: str
) -> None:
    process = jobs.start("a", "stop", "0", retries=5, on_preempted="resume")
    jobs.wait_for(1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, output
    assert (jobs.info("a")["state"], jobs.attempts()) == (state, ["a stop"])


def test_a_job_whose_workers_are_placed_lets_the_next_one_go(jobs: Jobs) -> None:
    first = jobs.start("first", "deaf", submitted=1.0)
    jobs.wait_for(1)
    second = jobs.start("second", "0", submitted=2.0)
    assert second.wait(timeout=PATIENCE_SECONDS) == 0
    assert first.poll() is None


def test_twenty_jobs_start_in_the_order_of_submission_whichever_process_is_first(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gate = QueueSlot.take(slot_path(queue_folder(ADDRESS), 0.0, "gate"))
    numbers = [(7 * index) % 20 for index in range(20)]
    started = {number: jobs.start(f"job-{number:02d}", "0", submitted=1.0 + number) for number in numbers}
    until(lambda: len(list(gate.path.parent.glob("0*"))) >= 21, "twenty jobs wait at the gate")
    resident = [psutil.Process(process.pid).memory_info().rss / 2**20 for process in started.values()]
    killed = started.pop(numbers[3])
    stopped = started.pop(numbers[5])
    killed.kill()
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(timeout=PATIENCE_SECONDS) == 130
    gate.give_back()
    assert {process.wait(timeout=PATIENCE_SECONDS) for process in started.values()} == {0}
    assert jobs.attempts() == [f"job-{number:02d} 0" for number in sorted(started)]
    assert max(resident) < 40, f"a job that waits takes {max(resident):.0f} MiB"
    assert "jobs submitted before it are ahead" in started[max(started)].communicate()[0]
    assert jobs.info(f"job-{numbers[5]:02d}")["state"] == "interrupted"
    assert not list(gate.path.parent.glob("0*"))
