"""Whether a run hangs, and which ranks are missing: pure functions of what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardyard.tracking.watch.beat import HOOK
from shardyard.tracking.watch.look import Collective, Look

# A step may take this many times as long as the slowest of a hundred before.
STEP_FACTOR = 5.0
# The first steps compile, allocate and choose kernels.
NUM_FIRST_STEPS = 5
# A hook takes longer now and then, such as one that writes every hundredth time.
HOOK_FACTOR = 6.0
# Above this share of a core, or this many bytes a second, a rank works on something.
BUSY_CORES = 0.2
BUSY_BYTES_PER_SECOND = 1_000_000.0

IN_STEP = frozenset({"step", "forward", "backward", "update", "metrics", "result"})
OURS = frozenset(f"{HOOK}{name}" for name in ("evaluate", "checkpoint", "sample"))


@dataclass(frozen=True)
class Limits:
    """When a rank counts as hanging, in seconds without a sign of progress.

    hang: in a step, where measured steps do not ask for more; also for stopped processes. idle: in all other phases, if
    no rank works on anything. data: for a batch. longest: in any phase.
    """

    hang: float = 10.0
    idle: float = 300.0
    data: float = 900.0
    longest: float = 1800.0


@dataclass(frozen=True)
class Watched:
    """What is known of a rank: the newest look, and since when it neither computes nor reads or writes."""

    look: Look
    idle_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """A hang. seconds: since the last sign of progress. limit: which it has exceeded. ranks: that are missing, or that
    hang if nobody waits for them. why: one sentence without a full stop."""

    seconds: float
    limit: float
    ranks: tuple[int, ...]
    why: str
    waiting: Collective | None = None


def limit_of(watched: Watched, limits: Limits, *, idle_seconds: float) -> float:
    """Seconds that a rank may spend in its phase without a sign of progress; `idle_seconds`: of the whole run."""
    look = watched.look
    if look.stopped:
        return limits.hang
    if look.phase in IN_STEP:
        if look.steps < NUM_FIRST_STEPS:
            return _at_leisure(limits, idle_seconds)
        return max(limits.hang, STEP_FACTOR * look.slow_step_seconds)
    if look.phase == "data":
        return max(limits.data, limits.hang)
    if look.phase.startswith(HOOK) and look.phase not in OURS and look.expected_seconds:
        return max(HOOK_FACTOR * limits.hang, STEP_FACTOR * look.expected_seconds)
    return _at_leisure(limits, idle_seconds)


def _at_leisure(limits: Limits, idle_seconds: float) -> float:
    """The limit where nothing says how long it takes. A rank that works is never ended before one that does nothing
    would be, however short collectives may be."""
    return limits.idle if idle_seconds >= limits.idle else max(limits.idle, limits.longest)


def judge(ranks: Sequence[Watched], limits: Limits) -> Verdict | None:
    """Whether the run hangs.

    A rank that waits in a collective is not to blame: those that it waits for may be reading data or writing a
    checkpoint, for which other limits hold. Only where all of them wait, nobody will come.
    """
    if not ranks:
        return None
    idle = min(one.idle_seconds for one in ranks)
    free = [one for one in ranks if one.look.waiting is None or one.look.stopped]
    blamed = free or list(ranks)
    measured = [(one, limit_of(one, limits, idle_seconds=idle)) for one in blamed]
    if free:
        over = [(one, limit) for one, limit in measured if one.look.age_seconds > limit]
    else:
        longest = max(limit for _, limit in measured)
        over = [(one, longest) for one, _ in measured]
        if min(one.look.age_seconds for one in ranks) <= longest:
            over = []
    if not over:
        return None
    seconds = max(one.look.age_seconds for one, _ in over)
    looks = [one.look for one in ranks]
    missing, why = missing_from(looks, tuple(one.look.rank for one, _ in over))
    return Verdict(seconds, min(limit for _, limit in over), missing, why, _first_waited(looks))


def missing_from(looks: Sequence[Look], hanging: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """The ranks that the others wait for, and why; `hanging` are those that exceeded a limit."""
    by_rank = {look.rank: look for look in looks}
    stopped = tuple(look.rank for look in looks if look.stopped)
    first = _first_waited(looks)
    if stopped:
        return stopped, f"{_ranks(stopped)} {_are(stopped)} stopped by a signal (SIGSTOP)"
    if first is None:
        phases = sorted({by_rank[rank].phase for rank in hanging})
        return hanging, f"{_ranks(hanging)} made no progress in {', '.join(phases)}"
    newest = {look.rank: one for look in looks for one in look.collectives if one.group == first.group}
    there = {rank: one for rank, one in newest.items() if one.waits_seconds is not None and one.number == first.number}
    members = first.members or tuple(by_rank)
    missing = tuple(rank for rank in members if rank in by_rank and rank not in there)
    if missing:
        place = f"{first.in_words()} of group {first.group}"
        return missing, f"{_ranks(missing)} did not come to {place}{_elsewhere(missing, by_rank)}"
    return _differing(there, first)


def _differing(there: Mapping[int, Collective], first: Collective) -> tuple[tuple[int, ...], str]:
    """All wait in a collective of the same number: either they mean different ones, or the connection is to blame."""
    kinds = Counter((one.operation, one.elements, one.kind) for one in there.values())
    usual, _ = kinds.most_common(1)[0]
    odd = tuple(rank for rank, one in sorted(there.items()) if (one.operation, one.elements, one.kind) != usual)
    if odd:
        other = there[odd[0]].in_words()
        return odd, f"{_ranks(odd)} {_are(odd)} in {other} where the others are in {_words_of(usual, first)}"
    everybody = tuple(sorted(there))
    return (
        everybody,
        f"all ranks are in {first.in_words()} of group {first.group}: the network or a device does not go on",
    )


def _words_of(usual: tuple[str, int, str], first: Collective) -> str:
    operation, elements, kind = usual
    return f"{operation} #{first.number}" + (f" of {elements} {kind}" if elements else "")


def _elsewhere(missing: Sequence[int], by_rank: Mapping[int, Look]) -> str:
    told = []
    for rank in missing[:3]:
        waits = by_rank[rank].waiting
        place = f"waits in {waits.in_words()} of group {waits.group}" if waits else f"is in {by_rank[rank].phase}"
        told.append(f"rank {rank} {place}" if len(missing) > 1 else f"it {place}")
    return f"; {', '.join(told)}"


def _first_waited(looks: Sequence[Look]) -> Collective | None:
    """The collective in which a rank has waited longest."""
    found = [waits for look in looks if (waits := look.waiting) is not None]
    return max(found, key=lambda one: one.waits_seconds or 0.0, default=None)


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _are(ranks: Sequence[int]) -> str:
    return "are" if len(ranks) > 1 else "is"
