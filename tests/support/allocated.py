"""Peaks of allocated memory in a process: bytes that the C library has handed out, read after every operation of torch.

Resident memory is no measure: freed pages stay, shared ones count, and a peak of milliseconds is missed.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


_LIBC = ctypes.CDLL(None)
_LIBC.mallinfo2.restype = _Mallinfo2


def allocated_bytes() -> int:
    """Bytes of this process that are allocated now, in the heaps of all threads and in mappings of their own."""
    found = _LIBC.mallinfo2()
    return int(found.uordblks + found.hblkhd)


class Allocated(TorchDispatchMode):
    """Records the peak while it is entered, in bytes above what was allocated on entry.

    What an operation allocates and frees within itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.begin = allocated_bytes()
        self.peak = 0

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.peak = max(self.peak, allocated_bytes() - self.begin)
        return found


def peaks(rank: Rank, jobs: list[Job]) -> list[int]:
    """Bytes at the peak of the last step of each job, above what was allocated before it."""
    found: list[int] = []
    for job in jobs:
        gc.collect()
        with Allocated() as allocated:
            of_steps: list[int] = []

            def on_step(step: int, metrics: dict[str, float], here: list[int] = of_steps) -> None:
                here.append(allocated.peak)
                allocated.restart()

            assert run_rank(job, rank, on_step) == "finished"
        found.append(of_steps[-1])
    return found
