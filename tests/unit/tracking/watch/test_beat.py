"""The beat of a process as another one reads it: phases, steps, collectives, stacks; and how a hang is reported."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shardyard.tracking.watch import report
from shardyard.tracking.watch.beat import Beat, compact, expanded
from shardyard.tracking.watch.judge import Verdict, Watched
from shardyard.tracking.watch.look import Evidence, Look, Target, look, percentile, question_and_end, readable
from support.reliability.watched import ranks
from support.waiting import until


@pytest.fixture
def child() -> Iterator[Target]:
    with ranks(1) as ((pid, handle),):
        yield Target(0, pid, "here", handle)


@pytest.fixture
def waiting_child() -> Iterator[Target]:
    with ranks(0) as ((pid, handle),):
        yield Target(0, pid, "here", handle)


def test_another_process_reads_what_a_rank_does(waiting_child: Target) -> None:
    child = waiting_child
    (seen,) = look([child])
    assert (seen.phase, seen.step, seen.steps) == ("forward", 8, 7)
    assert seen.slow_step_seconds < 1.0
    waiting = seen.waiting
    assert waiting is not None
    assert (waiting.in_words(), waiting.members) == ("all_reduce #2 of 24 float32", (0, 1))
    later = until(lambda: [one for one in look([child]) if one.age_seconds > seen.age_seconds], "time goes by")
    assert later[0].beats == seen.beats


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_rank_that_hangs_tells_its_stack_and_is_ended(child: Target, stopped: bool) -> None:
    """A stopped one is made to go on for it; both in an endless loop that nothing interrupts."""
    if stopped:
        os.kill(child.pid, signal.SIGSTOP)
        until(lambda: look([child])[0].stopped, "it is stopped")
    (seen,) = look([child])
    (found,) = question_and_end([child], end=True)
    assert report.innermost(found.stacks, seen.main_thread).startswith("<string>:")
    assert " in spin\n" in found.stacks
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "it has ended")
    assert look([child]) == []
    assert not readable(child)


@pytest.mark.slow
def test_a_question_alone_ends_nothing(child: Target) -> None:
    (found,) = question_and_end([child], end=False)
    assert "spin" in found.stacks
    assert look([child])


def test_times_of_parts_leave_out_inner_parts_and_waiting() -> None:
    beat = Beat()
    beat.begin_step(1)
    with beat.part("hooks"), beat.part("hook checkpoint"):
        pass
    with beat.part("backward"):
        beat.waited(1000.0)
    beat.end_step()
    assert beat._seconds["backward"] < -900.0, "waiting is taken off"
    assert beat.longest_step() < 1.0
    assert beat.phase == "between"
    for _ in range(5):
        with beat.part("hook mine"):
            pass
    assert beat._seen["hook mine"][0] == 5


def test_ranks_of_a_group_are_written_short() -> None:
    for some in ((0,), (0, 1, 2, 3), (1, 3, 5), (0, 1, 5), tuple(range(0, 4096, 8))):
        assert expanded(compact(some)) == some
    assert len(compact(tuple(range(4096)))) < 12
    assert percentile([float(one) for one in range(100)], 0.99) == 98.0
    assert percentile([], 0.99) == 0.0


STACKS = """Thread 0x00007f10 (most recent call first):
  File "/venv/lib/python3.11/site-packages/ray/worker.py", line 5 in listen

Current thread 0x00007f20 (most recent call first):
  File "/src/platform/shardyard/engine/watch/collectives.py", line 100 in _waiting
  File "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 3170 in all_reduce
  File "/src/platform/shardyard/engine/mesh.py", line 35 in sum
  File "/src/platform/shardyard/launch/ray/worker.py", line 43 in train_job
"""


def test_a_report_has_a_row_for_each_rank_and_files_with_all_stacks(tmp_path: Path) -> None:
    looks = [
        Look(0, 10, "h0", "S", phase="metrics", age_seconds=12.0, step=7, main_thread=0x7F20),
        Look(1, 11, "h1", "T", phase="forward", age_seconds=12.5, step=7),
    ]
    verdict = Verdict(12.5, 10.0, (1,), "rank 1 is stopped by a signal (SIGSTOP)")
    trace = json.dumps({"entries": [{"state": "started", "profiling_name": "nccl:all_reduce", "collective_seq_id": 9}]})
    evidence = {0: Evidence(0, STACKS, trace)}
    watched = [Watched(one) for one in looks]
    text = report.text_of(verdict, watched, evidence, "all ranks were ended", tmp_path / "x")
    assert "no progress for 12 s (limit 10 s): rank 1 is stopped by a signal (SIGSTOP)." in text
    assert "missing: rank 1\n" in text
    lines = text.splitlines()
    assert "nccl:all_reduce #9" in lines[5]
    assert lines[5].endswith("mesh.py:35 sum")
    assert "stopped" in lines[6]
    assert lines[6].endswith("no stack: it did not answer")
    for name in ("attempt-001-step-00000007", "attempt-002-step-00000003"):
        report.keep(tmp_path, name, f"{name}\n", verdict, watched, evidence)
    newest = report.newest(tmp_path)
    assert newest is not None
    assert newest[1] == "attempt-002-step-00000003\n"
    assert (newest[0].parent / "rank-0.stacks.txt").read_text() == STACKS
    assert report.newest(tmp_path / "nothing") is None
    assert report.recorded("{") == ""
    assert report.recorded(trace.replace("nccl:", "gloo:")) == "", "gloo's are never marked as finished there"
    many = [Watched(Look(number, number, "h", "S")) for number in range(100)]
    shown = report.text_of(Verdict(1.0, 1.0, (99,), "why"), many, {}, "nothing", tmp_path)
    assert "\n99 " in shown
    assert "and 36 ranks" in shown
