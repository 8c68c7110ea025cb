"""Locks of compilations: a dead one is removed, a live one never, and a long wait is told."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from shardyard.cli.doctor.checks import check_build_locks
from shardyard.engine.deepspeed import build_locks, quirks
from shardyard.errors import HardwareError
from support.waiting import until

# How torch itself takes a lock, and how we do; then a process that is killed.
_TORCH = "from torch.utils.file_baton import FileBaton; assert FileBaton({path!r}).try_acquire()"
_PLAIN = "import os; os.open({path!r}, os.O_CREAT | os.O_EXCL)"
_OURS = "from pathlib import Path; from shardyard.engine.deepspeed import build_locks; build_locks.take(Path({path!r}))"
_STAY = "\nprint('held', flush=True)\nimport sys; sys.stdin.read()"


class Holder:
    """A process that takes a lock and stays."""

    def __init__(self, path: Path, how: str = _PLAIN) -> None:
        command = [sys.executable, "-c", how.format(path=str(path)) + _STAY]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a lock on a disk of this machine, all of whose processes are seen."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(build_locks, "_file_system", lambda path: "ext4")
    monkeypatch.setattr(build_locks, "_sees_all", lambda: True)
    monkeypatch.setattr(build_locks, "_owner", lambda pid: None)
    (tmp_path / "cpu_adam").mkdir()
    return tmp_path / "cpu_adam" / "lock"


@pytest.fixture
def holder(lock: Path) -> Iterator[Holder]:
    made = Holder(lock)
    yield made
    made.kill()


def baton(lock: Path) -> tuple[quirks.BuildLock, list[str]]:
    told: list[str] = []
    return quirks.BuildLock(str(lock), wait_seconds=0.01, report=told.append), told


@pytest.mark.slow
def test_torch_still_waits_for_a_process_that_was_killed(lock: Path) -> None:
    Holder(lock, _TORCH).kill()
    assert not FileBaton(str(lock)).try_acquire()
    assert (
        "while os.path.exists(self.lock_file_path)"
        in Path(sys.modules[FileBaton.__module__].__file__ or "").read_text()
    )


@pytest.mark.parametrize("how", [_PLAIN, _OURS])
def test_a_lock_of_a_killed_process_is_taken_over(lock: Path, how: str) -> None:
    holder = Holder(lock, how)
    ours, told = baton(lock)
    assert not ours.try_acquire()
    assert build_locks.look(lock) == build_locks.LockState(pid=holder.process.pid)
    holder.kill()
    assert build_locks.look(lock) == build_locks.LockState(stale=True)
    assert ours.try_acquire()
    assert told == [f"removed {lock}, which a compilation that was killed has left"]
    ours.release()
    assert not lock.exists()
    assert build_locks.look(lock) is None


def test_a_compiler_that_outlives_its_process_still_holds_it(lock: Path) -> None:
    lock.touch()
    compiler = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=lock.parent)
    try:
        assert build_locks.look(lock) == build_locks.LockState(pid=compiler.pid)
        assert not build_locks.remove_stale(lock)
    finally:
        compiler.communicate(b"\n")
    assert build_locks.remove_stale(lock)


def test_waiting_ends_with_the_other_compilation_and_is_told(
    lock: Path, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quirks, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(quirks, "REPORTED_SECONDS", 0.0)
    ours, told = baton(lock)
    waiting = threading.Thread(target=ours.wait, daemon=True)
    waiting.start()
    until(lambda: told, "the wait is told")
    assert told == [
        f"waits for cpu_adam: process {holder.process.pid} compiles it; if that hangs, end it and delete {lock}"
    ]
    lock.unlink()
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    assert len(told) == 1


def test_a_compilation_that_is_killed_meanwhile_ends_the_wait(
    lock: Path, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quirks, "_LOOK_SECONDS", 0.0)
    ours, _ = baton(lock)
    holder.kill()
    with pytest.raises(
        HardwareError, match=r"the process that compiled cpu_adam in .* was ended; .* Start the run again"
    ):
        ours.wait()
    assert not lock.exists()


def test_what_is_not_certain_stays(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.touch()
    monkeypatch.setattr(build_locks, "_file_system", lambda path: "nfs4")
    state = build_locks.look(lock)
    assert state is not None
    assert state.why == "a process of another host may hold it: it lies on nfs4"
    assert build_locks.in_words(lock, state) == (
        f"{lock} is held, and {state.why}; if nothing compiles there, delete it"
    )
    assert not build_locks.remove_stale(lock)
    assert check_build_locks().status == "warn"
    # In a container, others may have the same folder, until no compilation takes so long.
    monkeypatch.setattr(build_locks, "_file_system", lambda path: "ext4")
    monkeypatch.setattr(build_locks, "_sees_all", lambda: False)
    assert not build_locks.remove_stale(lock)
    assert "another container" in check_build_locks().detail
    os.utime(lock, (0, 0))
    assert build_locks.look(lock) == build_locks.LockState(stale=True)


def test_a_lock_that_somebody_holds_by_flock_is_held(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_locks, "_processes", lambda: iter(()))
    held = build_locks.take(lock)
    assert held is not None
    state = build_locks.look(lock)
    assert state is not None
    assert "cannot be seen" in state.why
    assert not build_locks.remove_stale(lock)
    fcntl.flock(held, fcntl.LOCK_UN)
    os.close(held)
    assert build_locks.remove_stale(lock)


def test_processes_that_cannot_be_looked_at_may_hold_it(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.touch()

    def refuse(pid: int, status: os.stat_result) -> bool:
        raise PermissionError

    monkeypatch.setattr(build_locks, "_has_open", refuse)
    monkeypatch.setattr(build_locks, "_owner", lambda pid: os.getuid())
    state = build_locks.look(lock)
    assert state is not None
    assert "cannot be looked at" in state.why


def test_the_doctor_names_locks(lock: Path) -> None:
    assert check_build_locks().status == "ok"
    assert "none under way" in check_build_locks().detail
    holder = Holder(lock)
    assert check_build_locks().detail == f"process {holder.process.pid} compiles cpu_adam"
    holder.kill()
    found = check_build_locks()
    assert (found.status, str(lock) in found.detail, f"rm {lock}" in found.advice) == ("warn", True, True)


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    assert build_locks._file_system(Path("/proc/self/status")) == "proc"


def test_an_operation_is_compiled_by_this_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpp_extension, "FileBaton", FileBaton)
    told: list[str] = []
    quirks.compile_beside_others(told.append)
    (tmp_path / "lock").touch()
    made = cpp_extension.FileBaton(str(tmp_path / "lock"))
    assert isinstance(made, quirks.BuildLock)
    made._report("words")
    assert told == ["words"]


@pytest.mark.slow
def test_what_was_killed_while_it_compiled_is_compiled_anew(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "FileBaton", FileBaton)
    told: list[str] = []
    quirks.compile_beside_others(told.append)
    # torch numbers what a process compiles again under one name: another test may have loaded `cpu_adam`.
    folder = lock.parent.with_name("one")
    folder.mkdir()
    lock = folder / lock.name
    source = folder.parent / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    Holder(lock, _TORCH).kill()
    cpp_extension.load("one", [str(source)], is_python_module=False)
    assert ctypes.CDLL(str(folder / "one.so")).one() == 1
    assert told == [f"removed {lock}, which a compilation that was killed has left"]
    assert not lock.exists()
