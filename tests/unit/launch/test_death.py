"""What is told of a rank whose process died: from its log, from Ray's words, from the kernel."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from shardyard.launch.ray.death import count_oom_kills, describe_death
from shardyard.launch.ray.failures import failure_of

HERE = socket.gethostname()
PLACES = [{"host": HERE, "ranks": [0], "pids": [10]}, {"host": "far", "ranks": [1, 2], "pids": [21, 22]}]
RAY_MESSAGE = (
    "The actor died unexpectedly before finishing this task.\n\tpid: 22\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The "
    "process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."
)
SEGFAULT = """*** SIGSEGV received at time=1795917399 on cpu 1 ***
PC: @     0x7f3c  (unknown)  (unknown)
    @     0x7f3d       1000  (unknown)
[2026-11-29 02:00:00,000 E 22 22] logging.cc:460: *** SIGSEGV received at time=1795917399 on cpu 1 ***
Fatal Python error: Segmentation fault
Current thread 0x00007f3c (most recent call first):
  File "/x/model.py", line 3 in forward
"""


def log(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rank-2.log"
    path.write_text(text)
    return path


def test_a_rank_that_said_nothing_was_killed(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        "old 1 rank 2 of 3: begins on far, pid 9, cpu\n*** SIGSEGV received at time=1\n"
        "now rank 2 of 3: begins on far, pid 22, cpu\n\nreading shard 7\n",
    )
    assert describe_death(path, 2, PLACES, RAY_MESSAGE, oom_kills=3) == (
        "its process was ended by SIGKILL, or it exited without a message: `kill -9` does so, and so does the kernel "
        "when memory runs out (see `dmesg -T` there) (pid 22 on far); last lines of rank-2.log:\n"
        "    now rank 2 of 3: begins on far, pid 22, cpu\n"
        "    reading shard 7"
    )


@pytest.mark.parametrize(
    ("text", "signal"),
    [
        (SEGFAULT, "SIGSEGV"),
        ("Fatal Python error: Bus error\n", "SIGBUS"),
        ("Fatal Python error: Aborted\n", "SIGABRT"),
        ("*** SIGFPE received at time=1 on cpu 1 ***\n", "SIGFPE"),
    ],
)
def test_the_signal_is_the_one_that_the_process_reported(tmp_path: Path, text: str, signal: str) -> None:
    said = describe_death(log(tmp_path, f"rank 2 of 3: begins on far, pid 22, cpu\nlast words\n{text}"), 2, PLACES, "")
    assert said.startswith(f"its process was ended by {signal} (pid 22 on far); last lines of rank-2.log:\n")
    assert "    last words\n" in said
    assert "@ " not in said
    assert "File" not in said


def test_only_the_last_lines_are_shown_and_cut(tmp_path: Path) -> None:
    path = log(tmp_path, "".join(f"line {number} {'x' * 1000}\n" for number in range(5000)))
    lines = describe_death(path, 2, PLACES, RAY_MESSAGE).splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["4995", "4996", "4997", "4998", "4999"]
    assert max(map(len, lines)) < 310


def test_memory_that_ran_out_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "rank-0.log"
    assert describe_death(nowhere, 0, PLACES, RAY_MESSAGE, oom_kills=1) == (
        "its process was ended by SIGKILL: the kernel ran out of memory and killed 1 process(es) "
        f"(pid 10 on {HERE}); rank-0.log is empty"
    )
    monitor = "Task was killed due to the node running low on memory."
    assert "Ray's memory monitor" in describe_death(nowhere, 1, PLACES, monitor)
    assert "SIGKILL, or it exited" in describe_death(nowhere, 1, PLACES, RAY_MESSAGE, oom_kills=1), "of another host"


def test_a_rank_whose_place_is_not_known_and_a_node_that_went(tmp_path: Path) -> None:
    said = describe_death(tmp_path / "none.log", 5, PLACES, "The node of the actor died: node 1 was terminated")
    assert said.endswith("(pid unknown on an unknown host); none.log is empty")
    assert "its node went away" in describe_death(tmp_path / "none.log", 1, PLACES, "its node has died")


def test_the_kernel_counts() -> None:
    found = count_oom_kills()
    assert found is None or found >= 0


def test_what_ray_raises_for_a_process_that_is_gone_is_looked_into() -> None:
    died = {1: RayActorError(error_msg="The actor died."), 2: OutOfMemoryError("low on memory")}
    found = failure_of({**died, 0: ValueError("odd")}, lambda rank, text: f"{rank} is gone")
    assert found.causes == {"odd": (0,), "1 is gone": (1,), "2 is gone": (2,)}
