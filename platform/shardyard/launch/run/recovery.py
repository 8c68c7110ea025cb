"""The decision after a failure, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardyard.redaction import scrub

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
# A higher exponent would give the maximum wait anyway, and eventually overflow.
LONGEST_WAIT_DOUBLINGS = 10
# Python's exceptions for bugs and missing packages: the same call would fail again.
_BUGS = (AttributeError, ImportError, NameError, NotImplementedError, SyntaxError, TypeError, AssertionError)
# Temporary failures of storage, network and memory, and the same wrapped by libraries.
_PASSING = (OSError, MemoryError, RuntimeError)


def is_bug(error: BaseException) -> bool:
    """Whether an error is a bug or a missing package, and not caused by a temporary failure."""
    layer: BaseException | None = error
    seen: set[int] = set()
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        if isinstance(layer, _PASSING) and not isinstance(layer, NotImplementedError):
            return False
        layer = layer.__cause__ or (None if layer.__suppress_context__ else layer.__context__)
    return isinstance(error, _BUGS)


def bug_in_words(text: str, host: str) -> str:
    """The message for a bug before the first step: a module may be missing on one of many hosts."""
    return f"{text} (on {host}, before the first step: a bug, or broken packages there)"


class RankError(Exception):
    """A failure sent by a worker: text only, so that any process can unpickle it.

    All arguments are in `args`, because pickling carries only these. The rank removes secrets, because only it knows
    the values that it substituted into URLs. rollback: as in `Failure`.
    """

    def __init__(self, message: str, permanent: bool, rollback: bool = False) -> None:
        message = scrub(message)
        super().__init__(message, permanent, rollback)
        self.message = message
        self.permanent = permanent
        self.rollback = rollback


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended.

    causes: message → ranks that failed with it; empty if the workers never ran.
    permanent: the same attempt would fail again, for example because of a wrong path or a NaN loss.
    rollback: the run goes back to a checkpoint by its recipe (`anomalies`), which counts its rollbacks itself.
    """

    causes: Mapping[str, tuple[int, ...]]
    permanent: bool
    rollback: bool = False

    def describe(self) -> str:
        """One line per cause, with its ranks."""
        lines = []
        for message, ranks in self.causes.items():
            named = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: " if ranks else ""
            lines.append(f"{named}{message}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Retry:
    """Restart after `wait_seconds`, from the newest checkpoint."""

    wait_seconds: float


@dataclass(frozen=True)
class GiveUp:
    """End the run, because of `reason`."""

    reason: str


@dataclass(frozen=True)
class Count:
    """Consecutive failures without progress.

    step: of the newest checkpoint at the last failure. Only a later checkpoint counts as progress: steps after the
        newest one are trained again.
    """

    failures: int = 0
    step: int = 0

    def after(self, step: int) -> Count:
        """The count after one more failure; `step` is the step of the newest checkpoint."""
        return Count(1, step) if step > self.step else Count(self.failures + 1, self.step)


def decide(failure: Failure, *, failures: int, max_failures: int) -> Retry | GiveUp:
    """Decide after the `failures`-th failure (from 1) without a new checkpoint. After the first one, there is no wait;
    later ones double, up to a minute."""
    if failure.rollback:
        return Retry(0.0)
    if failure.permanent:
        return GiveUp("it would fail again")
    if failures > max_failures:
        allowed = f"cluster.max_failures is {max_failures}"
        gained = "without a new checkpoint in between"
        return GiveUp(allowed if max_failures == 0 else f"it failed {failures} times {gained} and {allowed}")
    if failures == 1:
        return Retry(0.0)
    doublings = min(failures - 2, LONGEST_WAIT_DOUBLINGS)
    return Retry(min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**doublings))


def group_causes(messages: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Rank → message becomes message → ranks, the message of the lowest rank first."""
    grouped: dict[str, list[int]] = {}
    for rank in sorted(messages):
        grouped.setdefault(messages[rank], []).append(rank)
    return {message: tuple(ranks) for message, ranks in grouped.items()}
