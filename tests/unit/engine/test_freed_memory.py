"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

STEPS = """
import gc; gc.disable()  # as where a rank imports what it trains with
import resource, sys, torch
import shardyard.engine.run  # as a rank has it imported
from shardyard import freed_memory
if sys.argv[1] == "keep":
    freed_memory.keep()
def step():
    return len([torch.ones(1 << 20) for _ in range(8)])  # 32 MiB: 8192 pages of 4 KiB, 16 of 2 MiB.
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def _faults_a_step(how: str) -> float:
    run = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return float(run.stdout)


def test_a_step_gets_its_memory_without_page_faults() -> None:
    # How many there are otherwise depends on the size of the kernel's pages: 16 to 8192.
    assert _faults_a_step("keep") < 0.5 * _faults_a_step("leave")
