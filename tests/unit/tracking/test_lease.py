"""One process at a time trains a run: who holds it, who may take it, and what the former holder notices."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import RunFolderError, TakenOverError, UsageError
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run import holder
from shardyard.tracking.run.events import Notice
from shardyard.tracking.run.folder import RunFolder, owner
from shardyard.tracking.run.holder import LEASE_NAME, is_gone, lives, process_start, read_lease, this_process
from shardyard.tracking.run.info import RunInfo
from shardyard.tracking.run.lease import Lease
from shardyard.tracking.run.summary import summarize
from support.waiting import until

ELSEWHERE = {"host": "elsewhere", "boot_id": "of another machine", "pid": 7, "process_start": 5}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "tiny", "a", "b", total_steps=10)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "EXPIRY_SECONDS", 0.3)
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.02)


def write_lease(run: RunFolder, **fields: Any) -> None:
    lease = {"token": "theirs", "beat": 1, "released": False, **this_process(), **fields}
    (run.path / LEASE_NAME).write_text(json.dumps(lease))


@pytest.fixture
def other(run: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run until its standard input ends."""
    code = (
        "import sys\nfrom shardyard.tracking.run.folder import RunFolder\n"
        "from shardyard.tracking.run.lease import Lease\n"
        "folder = RunFolder(sys.argv[1])\n"
        "with Lease.take(folder):\n"
        "    folder.update(state='running'); print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_run_is_held_by_one_process(run: RunFolder, other: subprocess.Popen[str]) -> None:
    with pytest.raises(UsageError, match=rf"trained by process {other.pid} on .* --take-over"):
        Lease.take(run)
    assert summarize(run).state == "running"


def test_a_lease_dies_with_its_process(run: RunFolder, other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    assert summarize(run).state == "lost"
    with Lease.take(run):
        run.update(state="running")
        assert summarize(run).state == "running"


def test_a_suspended_process_still_holds_its_run(run: RunFolder, other: subprocess.Popen[str], soon: None) -> None:
    os.kill(other.pid, 19)
    with pytest.raises(UsageError, match="--take-over"):
        Lease.take(run)
    os.kill(other.pid, 18)


def test_a_lease_that_was_given_back_is_free(run: RunFolder) -> None:
    with Lease.take(run) as lease:
        assert run.token == lease.token
    assert run.token is None
    lease.release()
    with Lease.take(run):
        pass


def test_a_pid_that_came_again_is_another_process(run: RunFolder) -> None:
    reused = {**this_process(), "process_start": 1}
    write_lease(run, **reused)
    run.update(state="running", driver=reused)
    assert lives(reused) is False
    assert summarize(run).state == "lost"
    with Lease.take(run):
        pass


def test_a_zombie_is_gone() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    until(lambda: process_start(child) is None, "the child has ended")
    assert Path(f"/proc/{child}").exists()
    assert lives({**this_process(), "pid": child, "process_start": None}) is False
    os.waitpid(child, 0)


def test_a_lease_of_another_host_is_free_once_nothing_changes(run: RunFolder, soon: None) -> None:
    write_lease(run, **ELSEWHERE)
    said: list[str] = []
    with Lease.take(run, report=said.append):
        assert said == [f"Process 7 on elsewhere may still be training {run.id}: watching its lease for 0.3 s."]


def test_a_lease_of_another_host_that_changes_is_held_whatever_the_clocks_say(run: RunFolder, soon: None) -> None:
    write_lease(run, **ELSEWHERE, renewed="1970-01-01T00:00:00+00:00")
    os.utime(run.path / LEASE_NAME, (0, 0))

    def renew(text: str) -> None:
        write_lease(run, **ELSEWHERE, beat=2)

    with pytest.raises(UsageError, match="process 7 on elsewhere"):
        Lease.take(run, report=renew)


def test_a_lock_says_at_once_that_another_host_lives(run: RunFolder) -> None:
    write_lease(run, **ELSEWHERE)
    with (run.path / LEASE_NAME).open("r+") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="process 7 on elsewhere"):
            Lease.take(run, report=lambda text: pytest.fail("it need not be watched"))


def test_of_a_container_on_this_machine_the_lock_tells(run: RunFolder) -> None:
    write_lease(run, pid_namespace="pid:[1]", pid=7)
    with Lease.take(run, report=lambda text: pytest.fail("it need not be watched")):
        pass


def test_two_who_take_at_once_do_not_both_have_it(run: RunFolder, monkeypatch: pytest.MonkeyPatch, soon: None) -> None:
    """Both have watched a lease run out; the other is a moment faster."""
    from shardyard.tracking.run import lease as module

    write_lease(run, **ELSEWHERE)
    watch = module._changes

    def others_were_faster(*arguments: Any) -> bool:
        found = watch(*arguments)
        write_lease(run, token="faster")
        return found

    monkeypatch.setattr(module, "_changes", others_were_faster)
    with pytest.raises(UsageError, match="--take-over"):
        Lease.take(run)


def test_without_locks_the_one_whose_file_stays_has_it(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.tracking.run import lease as module

    monkeypatch.setattr(module, "_lock", lambda descriptor: False)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: write_lease(run, token="faster"))
    with pytest.raises(UsageError, match="--take-over"):
        Lease.take(run)


def test_the_former_holder_notices_and_writes_nothing(run: RunFolder, soon: None) -> None:
    with Lease.take(run) as lease:
        run.update(state="running")
        tracker = Tracker(run)
        assert not lease.lost.is_set()
        thief = RunFolder(run.path)
        theirs = Lease.take(thief, take_over=True)
        with pytest.raises(TakenOverError, match=f"taken over by process {os.getpid()}"):
            run.check_held()
        with pytest.raises(TakenOverError):
            run.update(state="failed")
        tracker.event(Notice(text="a word"))
        tracker.sample(1, "a", "b")
        tracker.close()
        assert not run.events.exists()
        assert not run.samples.exists()
        until(lease.lost.is_set, "the holder notices")
    with pytest.raises(TakenOverError):
        run.update(state="failed")  # as a driver's thread does that was left behind
    assert run.state == "running"
    lease = read_lease(run.path)
    assert lease is not None
    assert lease["token"] == theirs.token
    assert not lease["released"], "the former holder gives nothing back that is not its own"
    theirs.release()


def test_a_lease_is_renewed(run: RunFolder, soon: None) -> None:
    def beat() -> int:
        lease = read_lease(run.path)
        assert lease is not None
        return int(lease["beat"])

    with Lease.take(run):
        first = beat()
        until(lambda: beat() > first + 2, "the lease is renewed")


def test_runs_without_a_lease_are_judged_by_their_driver(run: RunFolder) -> None:
    """Folders that were written before there were leases."""
    run.update(state="running", driver={"host": "elsewhere", "pid": 7})
    with pytest.raises(UsageError, match=r"process 7 on elsewhere.* --take-over"):
        Lease.take(run)
    assert summarize(run).state == "running"
    with Lease.take(run, take_over=True):
        pass
    (run.path / LEASE_NAME).unlink()
    run.update(state="running", driver={**owner()["driver"], "pid": 2**22 + 1})
    with Lease.take(run):
        pass


def test_a_list_of_runs_calls_another_hosts_lost_after_a_while(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lease(run, **ELSEWHERE)
    info = RunInfo(state="running", driver=ELSEWHERE)
    clock = iter([100.0, 101.0, 102.0, 140.0])
    monkeypatch.setattr(holder.time, "monotonic", lambda: next(clock))
    assert not is_gone(info, run.path)
    write_lease(run, **ELSEWHERE, beat=2)
    assert not is_gone(info, run.path), "it changed"
    assert not is_gone(info, run.path)
    assert is_gone(info, run.path), "this process has seen no change for 38 s"


def test_who_looks_once_goes_by_the_age_of_the_file(run: RunFolder) -> None:
    write_lease(run, **ELSEWHERE)
    os.utime(run.path / LEASE_NAME, (0, 0))
    assert is_gone(RunInfo(state="running", driver=ELSEWHERE), run.path)
    assert not is_gone(RunInfo(state="finished", driver=ELSEWHERE), run.path)


def test_a_pending_run_without_its_process_is_lost(run: RunFolder) -> None:
    assert summarize(run).state == "pending"
    run.update(driver={**owner()["driver"], "pid": 2**22 + 1})
    assert summarize(run).state == "lost"


def test_a_folder_that_cannot_be_written_is_said(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.tracking.run import lease as module

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_put", full)
    with pytest.raises(RunFolderError, match="cannot be written: No space left on device"):
        Lease.take(run)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"token": 1, "beat": 1}', '{"token": "a"}'])
def test_a_file_that_is_no_lease_is_none(run: RunFolder, text: str) -> None:
    (run.path / LEASE_NAME).write_text(text)
    assert read_lease(run.path) is None
