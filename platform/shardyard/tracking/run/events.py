"""events.jsonl as types: every kind of event with its fields and severity, and how it is written and read.

The fields of a kind are stable: a key whose meaning changes gets a new name, because a resumed run has lines of two
versions in one file. Unknown keys and kinds are tolerated.

Imports only the standard library, because every process that follows a run reads events.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, TypedDict, cast, get_args

from shardyard.tracking.files import JsonlTail, JsonlWriter
from shardyard.tracking.run import reading
from shardyard.tracking.run.anomaly_events import AnomalyDocuments as AnomalyDocuments
from shardyard.tracking.run.anomaly_events import AnomalyFound as AnomalyFound
from shardyard.tracking.run.anomaly_events import ReplicasDiffer as ReplicasDiffer
from shardyard.tracking.run.event import EVENTS as EVENTS
from shardyard.tracking.run.event import READERS, Line, registered
from shardyard.tracking.run.event import Event as Event
from shardyard.tracking.run.event import Severity as Severity
from shardyard.tracking.run.info import Place
from shardyard.tracking.run.waiting import Wait

# The consequence of a failure: another attempt, the end because of a stop request, or the end of a failed run.
Then = Literal["retry", "stopped", "end"]


@registered("attempt")
@dataclass(frozen=True, kw_only=True)
class Attempt(Event):
    """Ranks are about to train. resumed_step: of the checkpoint from which they continue; None for a start."""

    number: int = 1
    world_size: int | None = None
    resumed_step: int | None = None


@registered("length", "notice")
@dataclass(frozen=True, kw_only=True)
class Length(Event):
    """The steps of a run with a time budget, once known. text: the reason, as in plan.json."""

    steps: int = 0
    text: str = ""


@registered("waiting", "notice")
@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """A new or changed wait of a run."""

    wait: Wait = field(default_factory=lambda: Wait("unknown"))

    def to_fields(self) -> dict[str, object]:
        """The wait as JSON."""
        return {"wait": self.wait.as_json()}

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """The wait; earlier versions wrote a sentence as `text`."""
        found = Wait.from_json(line.get("wait")) or Wait.from_json(line.get("text"))
        return {} if found is None else {"wait": found}


@registered("placement")
@dataclass(frozen=True, kw_only=True)
class Placed(Event):
    """The hosts of an attempt's ranks, and their network. network: settings as text, by address."""

    placement: list[Place] = field(default_factory=list)
    network: dict[str, list[str]] = field(default_factory=dict)


@registered("evaluation")
@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """An evaluation on the held-out set. metrics: by name, besides the loss. rows: number of evaluated rows."""

    step: int | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: int | None = None
    seconds: float | None = None

    def to_fields(self) -> dict[str, object]:
        """The keys; metrics are at the same level as the others."""
        known = super().to_fields()
        metrics = known.pop("metrics")
        return {"step": known.pop("step"), "loss": known.pop("loss"), **cast("dict[str, object]", metrics), **known}

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """The fields; each number under an unknown key is a metric."""
        known = {one.name for one in fields(cls)}
        numbers = ((name, reading.number(value)) for name, value in line.items() if name not in known)
        metrics = {name: value for name, value in numbers if value is not None}
        return {**super().fields_of(line), "metrics": metrics}


@registered("checkpoint")
@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is complete. path: name of its folder. bytes, seconds: its size, and the time to write it.

    paused_seconds: for how long of it training stood still.
    """

    step: int | None = None
    path: str = ""
    seconds: float | None = None
    paused_seconds: float | None = None
    bytes: int | None = None


@registered("checkpoint_failed", "warning")
@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event):
    """A checkpoint could not be written."""

    step: int | None = None
    error: str = ""


@registered("checkpoint_mirrored")
@dataclass(frozen=True, kw_only=True)
class CheckpointMirrored(Event):
    """A checkpoint is in the store of `checkpoint.mirror`. url: of the run there. bytes, seconds: of the copy."""

    step: int | None = None
    url: str = ""
    seconds: float | None = None
    bytes: int | None = None


@registered("mirror_failed", "warning")
@dataclass(frozen=True, kw_only=True)
class MirrorFailed(Event):
    """The object store of `checkpoint.mirror` refuses a copy. then: whether it is tried again."""

    error: str = ""
    then: Then = "retry"


@registered("early_stop")
@dataclass(frozen=True, kw_only=True)
class EarlyStop(Event):
    """Training ends because a metric no longer improves."""

    step: int | None = None
    metric: str = ""
    best: float | None = None
    best_step: int | None = None


@registered("stage", "notice")
@dataclass(frozen=True, kw_only=True)
class StageBegun(Event):
    """A stage of training begins after `step`. number: from 1 on. text: what changes."""

    step: int | None = None
    number: int = 0
    name: str = ""
    text: str = ""


@registered("exhausted", "notice")
@dataclass(frozen=True, kw_only=True)
class SourcesExhausted(Event):
    """Training ends because `epochs` and `tokens` of the sources allow no further batch. steps: of the plan."""

    step: int | None = None
    steps: int | None = None


class SourceCounts(TypedDict, total=False):
    """Counts of a rank's reads from one source."""

    name: str
    rows: int
    tokens: int
    documents: int
    skipped: int
    epochs: int


class RankCounts(TypedDict, total=False):
    """Counts of a rank's reads: retried requests, tokens that did not fit a row, and counts by source."""

    retries: int
    cut: int
    sources: list[SourceCounts]


@registered("data")
@dataclass(frozen=True, kw_only=True)
class DataRead(Event):
    """Totals of reading over all ranks: skipped examples, retried requests, truncated tokens.

    unusable, without_target: rows that were left out. repaired: rows. named: the first of these rows, each with file,
    row and reason. empty_streams: had nothing to learn from in their share of a source, and read all of it. full: share
    of the positions of packed rows that hold tokens. filtered: documents that data.filters removed, by step and reason.
    """

    skipped: int = 0
    retries: int = 0
    cut: int = 0
    filtered: Mapping[str, int] = field(default_factory=dict)
    unusable: int = 0
    without_target: int = 0
    repaired: int = 0
    empty_streams: int = 0
    named: tuple[str, ...] = ()
    full: float | None = None
    ranks: Sequence[RankCounts] = ()

    @property
    def severity(self) -> Severity:
        """A notice if rows were left out or repaired."""
        told = self.unusable or self.without_target or self.repaired or self.empty_streams
        return "notice" if told else "info"


@registered("wandb")
@dataclass(frozen=True, kw_only=True)
class WandbStatus(Event):
    """The location of the copy at W&B. url: of the run there, if online. folder: on this disk, if offline."""

    mode: str = ""
    url: str | None = None
    folder: str | None = None

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """The fields; the first version wrote only a sentence: `W&B online: URL`."""
        if "mode" in line:
            return super().fields_of(line)
        mode, _, place = str(line.get("text") or "").removeprefix("W&B ").partition(": ")
        return {"mode": mode, ("url" if mode == "online" else "folder"): place or None}


@registered("finished")
@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The trained model has been written. path: name of its folder."""

    step: int | None = None
    path: str = ""


class Cause(TypedDict):
    """A cause of failure: one message, and the ranks that failed with it; no ranks if none had started."""

    message: str
    ranks: Sequence[int]


@registered("failure", "error")
@dataclass(frozen=True, kw_only=True)
class AttemptFailed(Event):
    """An attempt failed with these causes; `ranks` are the ranks of all causes.

    then: the consequence. wait_seconds: before the next attempt, which continues from `checkpoint_step` or the start.
    failures: consecutive ones without a new checkpoint, at most `max_failures`.
    outcome: of a run with a stop request, which ends without a checkpoint of this attempt.
    """

    causes: Sequence[Cause] = ()
    ranks: tuple[int, ...] = ()
    then: Then = "end"
    wait_seconds: float | None = None
    failures: int | None = None
    max_failures: int | None = None
    checkpoint_step: int | None = None
    outcome: str | None = None

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """The fields; earlier versions wrote a single text, `message`, which includes the consequence."""
        found, message = super().fields_of(line), reading.text(line.get("message"))
        if not found.get("causes") and message is not None:
            found["causes"] = [{"message": message, "ranks": list(reading.integers(line.get("ranks")) or ())}]
        return found


@registered("recovered", "notice")
@dataclass(frozen=True, kw_only=True)
class Recovered(Event):
    """The first step after a failure is done. seconds: since the last step before the failure was recorded.

    phases: name → seconds, in order, of what came between: `noticed` (the failure), `ended` (the processes), `waited`
    (by the policy, or for resources), `processes` (new ones), `imports`, `process_group`, `model` (built),
    `checkpoint` (read), `first_step`. spares: whether waiting processes took over.
    """

    step: int | None = None
    seconds: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    spares: bool = False


@registered("hang", "error")
@dataclass(frozen=True, kw_only=True)
class Hang(Event):
    """Ranks make no progress. seconds: since the last sign of it. ranks: that the others wait for. text: what happened,
    in one line. report: path of the whole report in the run folder, "" if it could not be written; table: its text.
    """

    step: int | None = None
    seconds: float | None = None
    ranks: tuple[int, ...] = ()
    text: str = ""
    report: str = ""
    table: str = ""


@registered("straggler", "warning")
@dataclass(frozen=True, kw_only=True)
class Straggler(Event):
    """A rank takes `factor` times as long as the others for its own work, mostly for `part` of the step:
    `part_seconds` a step, where the others take `others_seconds`."""

    rank: int | None = None
    host: str = ""
    part: str = ""
    factor: float | None = None
    part_seconds: float | None = None
    others_seconds: float | None = None


@registered("notice", "notice")
@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """A text message, as in a log. warns: something was lost or did not work."""

    text: str = ""
    warns: bool = False

    @property
    def severity(self) -> Severity:
        """A warning if it warns."""
        return "warning" if self.warns else "notice"


@dataclass(frozen=True, kw_only=True)
class OtherEvent(Event):
    """An event of an unknown kind, such as one from an external hook.

    name: the kind. fields: further keys of its line.
    """

    name: str
    text: str = ""
    fields: Line = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind in the file."""
        return self.name

    def to_fields(self) -> dict[str, object]:
        """The further keys of its line."""
        return {**({"text": self.text} if self.text else {}), **self.fields}


def _causes(value: object) -> list[Cause]:
    found = [(one.get("message"), reading.integers(one.get("ranks"))) for one in reading.objects(value) or ()]
    return [{"message": message, "ranks": list(ranks or ())} for message, ranks in found if isinstance(message, str)]


def _texts(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list | tuple) else ()


def _numbers(value: object) -> dict[str, float] | None:
    if not isinstance(value, Mapping):
        return None
    found = ((str(name), reading.number(one)) for name, one in value.items())
    return {name: number for name, number in found if number is not None}


READERS |= {
    "list[Place]": reading.objects,
    "dict[str, list[str]]": reading.texts_by_name,
    "tuple[str, ...]": _texts,
    "Mapping[str, int]": reading.integers_by_name,
    "Mapping[str, float]": _numbers,
    "Sequence[RankCounts]": reading.objects,
    "Sequence[Cause]": _causes,
    "Then": lambda value: value if value in get_args(Then) else None,
}


def event_of(line: Line) -> Event:
    """The event of a line of events.jsonl, of any version."""
    kind, moment = reading.text(line.get("kind")) or "", reading.number(line.get("time"))
    known = EVENTS.get(kind)
    if known is None:
        others = {name: value for name, value in line.items() if name not in ("kind", "time", "text")}
        return OtherEvent(name=kind, time=moment, text=reading.text(line.get("text")) or "", fields=others)
    return replace(known(), time=moment, **known.fields_of(line))


def line_of(event: Event) -> dict[str, object]:
    """The line of an event; `time` is now if it is None."""
    moment = time.time() if event.time is None else event.time
    return {"kind": event.kind, "time": moment, **event.to_fields()}


class EventWriter:
    """Appends events to a file that several processes may share; never raises. lost: number of unwritten events."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonlWriter(path)

    @property
    def lost(self) -> int:
        """The number of events that could not be written, for example because the disk is full."""
        return self._lines.lost

    def write(self, event: Event) -> None:
        """Append an event."""
        self._lines.append(line_of(event))

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def write_event(path: Path, event: Event) -> None:
    """Append one event."""
    writer = EventWriter(path)
    writer.write(event)
    writer.close()


class EventTail:
    """Reads new events of a file, like `JsonlTail`."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._lines = JsonlTail(path, offset)

    def new(self) -> list[Event]:
        """The events of new complete lines.

        Raises:
            OSError: the file exists but cannot be read.
        """
        return [event_of(line) for line in self._lines.new()]


def read_events(path: Path) -> list[Event]:
    """All events of a file; none if the file does not exist.

    Raises:
        OSError: it exists but cannot be read.
    """
    return EventTail(path).new()
