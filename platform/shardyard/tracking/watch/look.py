"""Looking at the ranks of this host: their beats and what the kernel tells about their processes; and ending them."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shardyard.tracking.watch import beat
from shardyard.tracking.watch.beat import Handle

# Stacks come from a signal, in milliseconds; a process of a busy host may have to wait for its turn. torch's record
# needs the interpreter, which a rank that hangs may keep.
STACK_SECONDS = 5.0
TRACE_SECONDS = 2.0
_POLL_SECONDS = 0.02
# An answer of which nothing came for this long is whole.
_QUIET_SECONDS = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")
_MOST_STACK_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Target:
    """A rank to look at."""

    rank: int
    pid: int
    host: str
    handle: Handle


@dataclass(frozen=True)
class Collective:
    """The newest collective that a rank has given to a group.

    members: ranks of the group. number: from 1 on in this group. waits_seconds: for how long the rank waits in it; None
    if it does not.
    """

    group: str
    members: tuple[int, ...]
    operation: str
    kind: str
    elements: int
    number: int
    age_seconds: float
    waits_seconds: float | None

    def in_words(self) -> str:
        """`all_reduce #12 of 4096 float32`."""
        size = f" of {self.elements} {self.kind}" if self.elements else ""
        return f"{self.operation} #{self.number}{size}"


@dataclass(frozen=True)
class Look:
    """A rank at one moment.

    state: of its process, as in /proc: R runs, S sleeps, D waits for the kernel, T is stopped, Z or X has ended.
    age_seconds: since its last sign of progress. beats: number of such signs. expected_seconds: the longest time that
    the phase took before; 0 if unknown. cpu_seconds, io_bytes: of the process so far. steps: since its start.
    slow_step_seconds: 99th percentile of the recent ones. parts: own seconds of each part so far; waited_seconds: for
    other ranks. waits_for: what it waits for in the kernel, where that is told.
    """

    rank: int
    pid: int
    host: str
    state: str
    phase: str = "start"
    age_seconds: float = 0.0
    beats: int = 0
    step: int = 0
    expected_seconds: float = 0.0
    cpu_seconds: float = 0.0
    io_bytes: int = 0
    steps: int = 0
    slow_step_seconds: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)
    waited_seconds: float = 0.0
    collectives: tuple[Collective, ...] = ()
    waits_for: str = ""
    main_thread: int = 0

    @property
    def waiting(self) -> Collective | None:
        """The collective in which it has waited longest; None if it waits in none."""
        found = [one for one in self.collectives if one.waits_seconds is not None]
        return max(found, key=lambda one: one.waits_seconds or 0.0, default=None)

    @property
    def stopped(self) -> bool:
        """Whether its process is stopped by a signal."""
        return self.state == "T"


def look(targets: Sequence[Target]) -> list[Look]:
    """All ranks of this host now; those whose process has ended are left out, because Ray reports them."""
    return [found for target in targets if (found := _look(target)) is not None]


def readable(target: Target) -> bool:
    """Whether a rank can be looked at from this process."""
    try:
        return os.readlink(_path(target.pid, target.handle.page)).startswith(f"/memfd:{beat.PAGE}")
    except OSError:
        return False


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def _look(target: Target) -> Look | None:
    try:
        page = _read(target.pid, target.handle.page, beat.SIZE_BYTES)
        stat = Path(f"/proc/{target.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    if stat[0] in "ZX" or len(page) < beat.SIZE_BYTES:
        return None
    now = time.monotonic()
    phase, since, step, beats, main, expected = beat.HEAD.unpack_from(page)
    steps, *seconds, waited = beat.TIMES.unpack_from(page, beat.TIMES_AT)
    recent = struct.unpack_from(f"<{min(max(steps, 0), beat.NUM_RECENT)}d", page, beat.RECENT_AT)
    return Look(
        target.rank,
        target.pid,
        target.host,
        stat[0],
        phase=_text(phase),
        age_seconds=max(0.0, now - since),
        beats=beats,
        step=step,
        expected_seconds=expected,
        cpu_seconds=(int(stat[11]) + int(stat[12])) / _TICKS,
        io_bytes=_io_bytes(target.pid),
        steps=steps,
        slow_step_seconds=percentile(recent, 0.99),
        parts=dict(zip(beat.PARTS, seconds, strict=True)),
        waited_seconds=waited,
        collectives=tuple(_collectives(page, now)),
        waits_for=_wchan(target.pid) if stat[0] == "D" else "",
        main_thread=main,
    )


def _collectives(page: bytes, now: float) -> list[Collective]:
    lines = page[beat.MEMBERS_AT :].partition(b"\0")[0].decode(errors="replace").splitlines()
    members = {name: ranks for name, _, ranks in (line.rpartition(" ") for line in lines)}
    found = []
    for slot in range(beat.NUM_GROUPS):
        name, operation, kind, elements, number, issued, since = beat.GROUP.unpack_from(
            page, beat.GROUPS_AT + slot * beat.GROUP.size
        )
        if not number:
            break
        group = _text(name)
        ranks = beat.expanded(members.get(group, ""))
        waits = max(0.0, now - since) if since else None
        age = max(0.0, now - issued)
        found.append(Collective(group, ranks, _text(operation), _text(kind), elements, number, age, waits))
    return found


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")


def _path(pid: int, descriptor: int) -> str:
    return f"/proc/{pid}/fd/{descriptor}"


def _read(pid: int, descriptor: int, most: int, begin: int = 0) -> bytes:
    opened = os.open(_path(pid, descriptor), os.O_RDONLY)
    try:
        return os.pread(opened, most, begin)
    finally:
        os.close(opened)


def _io_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines[:2])
    return 0


def _wchan(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/wchan").read_text(encoding="ascii").strip("0")
    except OSError:
        return ""


# What a rank that hangs is asked, and how it is ended.


@dataclass(frozen=True)
class Evidence:
    """What a rank could tell: stacks of its threads as Python writes them, and torch's flight recorder as JSON; "" if
    it could not."""

    rank: int
    stacks: str = ""
    trace: str = ""


def question_and_end(targets: Sequence[Target], *, end: bool) -> list[Evidence]:
    """Ask ranks of this host for their stacks and collectives; then `end` their processes.

    A stopped process answers only once it goes on. It does so after all others of this host have ended: nobody is left
    with whom it could train, and the question reaches it before it runs a line.
    """
    states = {one.rank: one for one in look(targets)}
    stopped = [target for target in targets if (seen := states.get(target.rank)) is not None and seen.stopped]
    awake = [target for target in targets if target not in stopped]
    found = _ask(awake)
    if end:
        _kill(awake)
        found += _ask(stopped, also=signal.SIGCONT)
        _kill(stopped)
    return found


def _ask(targets: Sequence[Target], also: int | None = None) -> list[Evidence]:
    before = {target.rank: _size(target.pid, target.handle.stacks) for target in targets}
    for target in targets:
        with contextlib.suppress(OSError):
            os.kill(target.pid, beat.STACK_SIGNAL)
            if also is not None:
                os.kill(target.pid, also)
        if also is None:
            with contextlib.suppress(OSError):
                pipe = os.open(_path(target.pid, target.handle.ask), os.O_WRONLY | os.O_NONBLOCK)
                os.write(pipe, b"?")
                os.close(pipe)

    def stack_sizes() -> list[int]:
        return [_size(target.pid, target.handle.stacks) for target in targets]

    def has_stacks() -> bool:
        sizes = zip(targets, stack_sizes(), strict=True)
        return all(size < 0 or size != before[target.rank] for target, size in sizes)  # below 0: it has ended

    _wait(has_stacks, STACK_SECONDS)
    if also is None:
        _wait(lambda: all(_size(target.pid, target.handle.trace) != 0 for target in targets), TRACE_SECONDS)
    _wait_until_quiet(stack_sizes, TRACE_SECONDS)
    return [
        Evidence(
            target.rank,
            _told(target.pid, target.handle.stacks, before[target.rank]),
            _told(target.pid, target.handle.trace, 0),
        )
        for target in targets
    ]


def _wait(ready: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not ready():
        time.sleep(_POLL_SECONDS)


def _wait_until_quiet(sizes: Callable[[], list[int]], seconds: float) -> None:
    """Return when nothing has been added for a moment: stacks are written line by line."""
    until = time.monotonic() + seconds
    seen, since = sizes(), time.monotonic()
    while (now := time.monotonic()) < until and now - since < _QUIET_SECONDS:
        time.sleep(_POLL_SECONDS)
        if (found := sizes()) != seen:
            seen, since = found, time.monotonic()


def _size(pid: int, descriptor: int) -> int:
    try:
        return os.stat(_path(pid, descriptor)).st_size
    except OSError:
        return -1


def _told(pid: int, descriptor: int, begin: int) -> str:
    try:
        return _read(pid, descriptor, _MOST_STACK_BYTES, max(0, begin)).decode(errors="replace")
    except OSError:
        return ""


def _kill(targets: Sequence[Target]) -> None:
    for target in targets:
        # The number may belong to another process by now; that of a rank has the rank's beat.
        if readable(target):
            with contextlib.suppress(OSError):
                os.kill(target.pid, signal.SIGKILL)
