"""Events of what a run finds in its numbers: batches that break it, and ranks that differ.

Imports only the standard library, because every process that follows a run reads events.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.tracking.run.event import Event, registered


@registered("anomaly", "warning")
@dataclass(frozen=True, kw_only=True)
class AnomalyFound(Event):
    """A batch with a loss or gradient norm that is not finite (`what` is nan) or leaps (spike), and the action.

    value: of `signal`, as text, because it may not be a number. usual, score: median of the steps before and robust
    z-score, of a spike. first_row, last_row: of the batch in the run, from 0. count: of actions so far, of `at_most`.
    skipped: the steps that a rollback skips; checkpoint_step: where the run goes on from.
    """

    step: int | None = None
    what: str = ""
    signal: str = ""
    value: str = ""
    usual: float | None = None
    score: float | None = None
    action: str = ""
    count: int | None = None
    at_most: int | None = None
    first_row: int | None = None
    last_row: int | None = None
    skipped: tuple[int, ...] = ()
    checkpoint_step: int | None = None


@registered("anomaly_documents", "notice")
@dataclass(frozen=True, kw_only=True)
class AnomalyDocuments(Event):
    """The documents of a batch with an anomaly: source, file and row of each, and the start of its SHA-256.

    rows: the first ones of the batch, which have these `documents`, of which some are `named`. problem: why they are
    not known, or how the data has changed since; "" if all is well.
    """

    step: int | None = None
    rows: int | None = None
    documents: int | None = None
    named: tuple[str, ...] = ()
    problem: str = ""


@registered("replicas_differ", "error")
@dataclass(frozen=True, kw_only=True)
class ReplicasDiffer(Event):
    """Ranks that should hold the same weights do not. ranks: those that differ from the majority; all if there is none.

    text: what differs, in words. compared_step: the last one at which they were equal.
    """

    step: int | None = None
    ranks: tuple[int, ...] = ()
    compared_step: int | None = None
    text: str = ""
