"""Copies between host and device, and garbage that is collected at fixed steps."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import torch

from shardyard.engine.transfer import Copies
from shardyard.models.adapters import nf4

CPU = torch.device("cpu")


# Garbage that only a collection frees, in a process that has imported nothing else to walk through.
CYCLES = """
import gc
from shardyard.engine.collecting import EVERY_STEPS, GarbageCollection

class Cycle:
    alive = 0

    def __init__(self):
        self.own = self
        Cycle.alive += 1

    def __del__(self):
        Cycle.alive -= 1
"""


def in_a_fresh_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", CYCLES + textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_micro_batches_come_in_order_and_are_copied_one_ahead() -> None:
    parts = tuple({"labels": torch.full((2,), number)} for number in range(3))
    assert [int(part["labels"][0]) for part in Copies(CPU).of(parts)] == [0, 1, 2]
    assert list(Copies(CPU).of(())) == []


def test_garbage_is_collected_at_fixed_steps_only() -> None:
    in_a_fresh_process("""
        assert gc.isenabled()
        with GarbageCollection(steps=2 * EVERY_STEPS) as garbage:
            assert not gc.isenabled()
            assert gc.get_freeze_count() > 0
            Cycle()
            garbage.after(EVERY_STEPS - 1)
            assert Cycle.alive == 1
            garbage.after(EVERY_STEPS)
            assert Cycle.alive == 0
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
    """)


def test_what_was_frozen_before_stays_frozen_beside_the_model() -> None:
    in_a_fresh_process("""
        gc.freeze()
        made = [Cycle() for _ in range(3)]
        frozen = gc.get_freeze_count()
        with GarbageCollection(steps=EVERY_STEPS):
            assert gc.get_freeze_count() > frozen
        assert gc.get_freeze_count() > frozen
    """)


def test_a_short_run_is_spared_the_collection_at_its_start() -> None:
    in_a_fresh_process("""
        with GarbageCollection(steps=EVERY_STEPS - 1):
            assert gc.get_freeze_count() == 0
    """)


def test_the_levels_of_nf4_are_copied_to_a_device_once() -> None:
    codes, scales = nf4.quantize(torch.randn(4, 64))
    shape = torch.Size((4, 64))
    with torch.inference_mode():
        first = nf4.dequantize(codes, scales, shape)
    kept = nf4._levels(CPU)
    assert nf4._levels(CPU) is kept
    assert not kept.is_inference()
    assert torch.equal(nf4.dequantize(codes, scales, shape), first)
