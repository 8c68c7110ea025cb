"""Processes that have a beat as ranks do, without torch: one waits in a collective, the other one is in a loop."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from shardyard.tracking.watch.beat import Handle

RANK = """
import sys, time, threading
from shardyard.tracking.watch.beat import BEAT

rank, handle = int(sys.argv[1]), BEAT.open()
for step in range(1, 8):
    BEAT.begin_step(step)
    with BEAT.part("forward"):
        pass
    BEAT.end_step()
BEAT.begin_step(8)
BEAT.issue("world", "all_reduce", "float32", 12, [0, 1])

def told():
    print(handle.page, handle.stacks, handle.ask, handle.trace, flush=True)

def spin():
    told()
    while True:
        pass

def wait():
    BEAT.issue("world", "all_reduce", "float32", 24)
    BEAT.wait("world", time.monotonic())
    told()
    threading.Event().wait()

BEAT.enter("forward", time.monotonic())
[wait, spin][rank]()
"""


@contextlib.contextmanager
def ranks(*kinds: int) -> Iterator[list[tuple[int, Handle]]]:
    """Process ids and beats of processes; kind 0 waits, kind 1 is in a loop."""
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, str(kind)], stdout=subprocess.PIPE, text=True) for kind in kinds
    ]
    try:
        found = []
        for process in processes:
            assert process.stdout is not None
            found.append((process.pid, Handle(*map(int, process.stdout.readline().split()))))
        yield found
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
