"""The beat of a rank: what it does at the moment, in a page of memory that other processes of its host read.

A rank writes some bytes into memory; nobody answers, so nothing here waits, and a rank that is stopped or hangs in a
library can still be read. The memory has no name (`memfd_create`): others open it through /proc, and nothing is left of
it once the process has ended, however that happened. Imports only the standard library, because a rank begins before
it has imported torch.
"""

from __future__ import annotations

import faulthandler
import fcntl
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Asks a rank for the stacks of its threads; Python's own handler writes them without needing the interpreter.
STACK_SIGNAL = signal.SIGUSR2
SIZE_BYTES = 64 * 1024
# How the memory is called in /proc.
PAGE = "shardyard-beat"
# Parts of a step whose time is summed, in the order of the record.
PARTS = ("data", "forward", "backward", "update", "metrics", "result", "hooks", "other")
# The phase between two steps.
BETWEEN = "between"
# How the phase of a hook begins; its name follows.
HOOK = "hook "
NUM_RECENT = 128
NUM_GROUPS = 32

# Phase, its beginning (monotonic seconds), step, number of beats, identity of the main thread, longest time that this
# phase took before (0 if too rarely seen).
HEAD = struct.Struct("<40sdqQQd")
# Steps so far; seconds of each part without waiting for others; seconds of waiting.
TIMES = struct.Struct(f"<q{len(PARTS)}dd")
TIMES_AT = 128
RECENT_AT = 512
# Name, operation, type of elements, number of elements, sequence number, issued, waiting since (0: not waiting).
GROUP = struct.Struct("<32s32s16sqqdd")
GROUPS_AT = RECENT_AT + 8 * NUM_RECENT
MEMBERS_AT = 8192
# A phase that was seen this often is expected to take no longer than it did.
SEEN_OFTEN = 5


@dataclass(frozen=True)
class Handle:
    """How to reach the beat of a process: descriptors of its page, of its stacks, and of the pipe that asks for a trace
    of collectives, which appears in `trace`."""

    page: int
    stacks: int
    ask: int
    trace: int


class Part:
    """Context of one part of a step, or of other work. Its time, less that of parts within it and of waiting for other
    ranks, is added to the part's."""

    __slots__ = ("_beat", "_inner", "_name", "_outer", "_started")

    def __init__(self, beat: Beat, name: str) -> None:
        self._beat, self._name = beat, name

    def __enter__(self) -> Part:
        beat = self._beat
        self._outer, self._started, self._inner = beat.phase, time.monotonic(), beat.apart
        beat.enter(self._name, self._started)
        return self

    def __exit__(self, *error: object) -> None:
        self._beat.leave(self._name, self._outer, self._started, self._inner)


class Beat:
    """What a rank does. Until it is opened it writes into memory that nobody reads, which costs the same.

    phase: the name of the present one. apart: seconds so far that belong to no part that is open: those of finished
    inner parts, and of waiting for other ranks.
    """

    def __init__(self) -> None:
        self._page: mmap.mmap | bytearray = bytearray(SIZE_BYTES)
        self._main = threading.main_thread().ident or 0
        self._opened: Handle | None = None
        self._asked = -1
        self.clear()

    def clear(self) -> None:
        """Begin anew, for the next job of this process."""
        self.phase, self.apart, self._waited = "start", 0.0, 0.0
        self._step, self._beats, self._steps = 0, 0, 0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._seen: dict[str, tuple[int, float]] = {}
        self._slots: dict[str, int] = {}
        self._issued: dict[str, int] = {}
        self._members = MEMBERS_AT
        self._step_started = self._between = self._between_before = 0.0
        self._page[:] = bytes(SIZE_BYTES)
        self._write(time.monotonic())

    def train_here(self) -> None:
        """The calling thread is the one that trains."""
        self._main = threading.get_ident()

    def open(self) -> Handle:
        """Let other processes read this beat and ask for stacks; returns how."""
        if self._opened is None:
            page = os.memfd_create(PAGE)
            os.ftruncate(page, SIZE_BYTES)
            shared = mmap.mmap(page, SIZE_BYTES)
            shared[:] = bytes(self._page)
            self._page = shared
            stacks, trace = os.memfd_create("shardyard-stacks"), os.memfd_create("shardyard-trace")
            fcntl.fcntl(stacks, fcntl.F_SETFL, os.O_APPEND)
            faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True, chain=False)
            self._asked, ask = os.pipe()
            self._opened = Handle(page, stacks, ask, trace)
        return self._opened

    def asked(self) -> int:
        """Descriptor whose byte asks for a trace of collectives."""
        return self._asked

    def part(self, name: str) -> Part:
        """Context of a part of a step, or of other work that may last."""
        return Part(self, name)

    def enter(self, name: str, now: float) -> None:
        """Begin a phase."""
        self.phase = name
        self._beats += 1
        self._write(now)

    def leave(self, name: str, outer: str, started: float, apart_before: float) -> None:
        """End a phase and go on with the outer one."""
        now = time.monotonic()
        passed = now - started
        own = passed - (self.apart - apart_before)
        kind = name if name in self._seconds else "hooks" if name.startswith(HOOK) else "other"
        self._seconds[kind] += own
        if name == "hooks":
            self._between += passed
        # For the part around this one, all of it is time of another.
        self.apart = apart_before + passed
        seen, longest = self._seen.get(name, (0, 0.0))
        self._seen[name] = (seen + 1, max(longest, passed))
        self.enter(outer, now)

    def alive(self) -> None:
        """Tell that the present phase goes on, such as after a batch of an evaluation."""
        self._beats += 1
        self._write(time.monotonic())

    def begin_step(self, step: int) -> None:
        """A step begins."""
        self._step, self._step_started = step, time.monotonic()
        self._between_before = self._between
        self._beats += 1
        self.phase = "step"
        self._write(self._step_started)

    def end_step(self) -> None:
        """The step has ended, with its hooks. Its time without them is kept, as that of a step."""
        now = time.monotonic()
        seconds = max(0.0, now - self._step_started - (self._between - self._between_before))
        struct.pack_into("<d", self._page, RECENT_AT + 8 * (self._steps % NUM_RECENT), seconds)
        self._steps += 1
        TIMES.pack_into(self._page, TIMES_AT, self._steps, *self._seconds.values(), self._waited)
        self.enter(BETWEEN, now)

    def forget_steps(self) -> None:
        """The next steps take another time than those before, and the first of them longer."""
        self._steps = 0

    @property
    def num_steps(self) -> int:
        """Steps so far in this process."""
        return self._steps

    def longest_step(self) -> float:
        """Seconds of the longest of the recent steps; 0 before the first."""
        return max(self.recent_steps(), default=0.0)

    def recent_steps(self) -> Sequence[float]:
        """Seconds of the recent steps, without hooks."""
        return struct.unpack_from(f"<{min(self._steps, NUM_RECENT)}d", self._page, RECENT_AT)

    def _write(self, now: float) -> None:
        seen, longest = self._seen.get(self.phase, (0, 0.0))
        expected = longest if seen >= SEEN_OFTEN else 0.0
        HEAD.pack_into(self._page, 0, self.phase.encode()[:40], now, self._step, self._beats, self._main, expected)

    # Collectives.

    def issue(self, group: str, operation: str, kind: str, elements: int, members: Sequence[int] | None = None) -> int:
        """A collective is given to a group; returns its number there, from 1 on.

        members: ranks of the group, needed at its first collective.
        """
        number = self._issued.get(group, 0) + 1
        self._issued[group] = number
        slot = self._slots.get(group)
        if slot is None:
            slot = self._slots[group] = len(self._slots)
            self._add_members(group, members or ())
        if slot < NUM_GROUPS:
            where = GROUPS_AT + slot * GROUP.size
            GROUP.pack_into(
                self._page,
                where,
                group.encode()[:32],
                operation.encode()[:32],
                kind.encode()[:16],
                elements,
                number,
                time.monotonic(),
                0.0,
            )
        return number

    def knows(self, group: str) -> bool:
        """Whether the members of a group are recorded."""
        return group in self._slots

    def wait(self, group: str, since: float) -> None:
        """This rank waits in the newest collective of a group since then; 0: it does no longer."""
        slot = self._slots.get(group, NUM_GROUPS)
        if slot < NUM_GROUPS:
            struct.pack_into("<d", self._page, GROUPS_AT + (slot + 1) * GROUP.size - 8, since)

    def waited(self, seconds: float) -> None:
        """The training thread has waited for other ranks."""
        self._waited += seconds
        self.apart += seconds

    def _add_members(self, group: str, members: Sequence[int]) -> None:
        line = f"{group[:32]} {compact(members)}\n".encode()
        if self._members + len(line) < SIZE_BYTES:
            self._page[self._members : self._members + len(line)] = line
            self._members += len(line)


def compact(ranks: Sequence[int]) -> str:
    """`0:8:1` for ranks with equal distances, else `0,3,4`."""
    steps = {after - before for before, after in pairwise(ranks)}
    if len(ranks) > 1 and len(steps) == 1 and (step := steps.pop()) > 0:
        return f"{ranks[0]}:{ranks[-1] + 1}:{step}"
    return ",".join(map(str, ranks))


def expanded(text: str) -> tuple[int, ...]:
    """The ranks of `compact`."""
    if ":" in text:
        return tuple(range(*map(int, text.split(":"))))
    return tuple(int(one) for one in text.split(",") if one)


# The beat of this process.
BEAT = Beat()
