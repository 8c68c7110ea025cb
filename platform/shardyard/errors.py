"""The exceptions of Shardyard, whose messages are written for users.

    ShardyardError                exit code 1
    ├── UsageError                exit code 2: a command line that cannot be carried out
    │   ├── RecipeError           an invalid recipe; carries every problem found
    │   └── RunFolderError        a run that is missing or incomplete
    ├── DataError                 a source that cannot be read or is empty
    │   ├── UnavailableError      one whose server or storage fails temporarily
    │   └── UnusableRowError      a row that nothing can be learned from
    ├── ModelError                an architecture or weights that cannot be built
    ├── HardwareError             a device, precision or library that this machine lacks
    ├── CheckpointError           a checkpoint that cannot be written, or does not verify
    ├── TrainingError             the run failed; names the cause of each rank
    │   ├── RollbackError         it goes on from a checkpoint, and skips what it skips from there
    │   └── ReplicasError         ranks do not hold the same weights any more
    └── TakenOverError            another process trains the run now; this one stops without writing

Each message is one short paragraph: what is wrong, where, and what to do next. Invariants of the code are `assert`s,
never these. Secrets are removed when the error is created, so callers need not do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.redaction import scrub

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143


class ShardyardError(Exception):
    """Base of all errors that are shown as a paragraph instead of a traceback."""

    exit_code = EXIT_FAILED

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(scrub(part) if isinstance(part, str) else part for part in arguments))


class UsageError(ShardyardError):
    """The command line asks for something that does not exist or cannot be done."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe.

    `where` is ``file:line`` (or ``-s`` for an override), `path` the dotted field, `message` what is wrong with
    the value and what would be right.
    """

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class RecipeError(UsageError):
    """A recipe that cannot be used, with all its problems at once."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(Problem(scrub(one.where), one.path, scrub(one.message)) for one in problems)
        count = len(self.problems)
        title = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([title, *(f"  {problem}" for problem in self.problems)]))


class RunFolderError(UsageError):
    """A run folder that is missing, ambiguous, or not what it should be."""


class DataError(ShardyardError):
    """A data source that cannot be read or is empty."""


class UnavailableError(DataError):
    """A source whose server or storage fails temporarily: a later attempt may succeed."""


class UnusableRowError(DataError):
    """A row that nothing can be learned from, such as a conversation that the chat template refuses.

    `data.on_error` decides whether it is skipped, repaired, or ends the run; only with `stop` does it reach users.
    `reason` contains nothing of the row itself, so that rows can be counted by reason; `detail` is about this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


class ModelError(ShardyardError):
    """An architecture that `transformers` cannot build, or weights that do not fit it."""


class HardwareError(ShardyardError):
    """The machine lacks a device, a precision or a library that the recipe needs."""


class CheckpointError(ShardyardError):
    """A checkpoint that could not be written or does not match its manifest."""


class TrainingError(ShardyardError):
    """The training run failed on one or more ranks."""


class RollbackError(TrainingError):
    """The run goes back to a checkpoint and skips batches from there: all ranks start again, which is no failure."""


class ReplicasError(TrainingError):
    """Ranks do not hold the same weights any more, so what they compute is wrong; the newest checkpoint is sound."""


class TakenOverError(ShardyardError):
    """Another process has taken the run over, so this one must not write to its folder any more."""


class RenamedFieldWarning(FutureWarning):
    """A recipe or an override uses the old name of a field."""
