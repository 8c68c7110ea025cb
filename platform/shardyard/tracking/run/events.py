"""events.jsonl as types: every kind of event with its fields and severity, how it is written, and how it is read.

A kind keeps its fields: a key that changes its meaning gets another name, because a resumed run has lines of two
versions in one file. Unknown keys and kinds are tolerated.

Imports only the standard library, because every process that follows a run reads events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, Literal, TypedDict, TypeVar, cast, get_args

from shardyard.tracking.files import JsonlTail, JsonlWriter
from shardyard.tracking.run import reading
from shardyard.tracking.run.info import Place
from shardyard.tracking.run.waiting import Wait

# info: the usual course. notice: a person may want to know. warning: something was lost or did not work. error: the
# attempt has failed.
Severity = Literal["info", "notice", "warning", "error"]

# What follows a failure: another attempt, the end that was asked for, or the end of a run that has failed.
Then = Literal["retry", "stopped", "end"]
# A line of events.jsonl.
Line = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run. time: seconds since 1970; where it is None, it is that of writing."""

    _kind: ClassVar[str] = ""
    _severity: ClassVar[Severity] = "info"

    time: float | None = None

    @property
    def kind(self) -> str:
        """The name of the kind in events.jsonl."""
        return self._kind

    @property
    def severity(self) -> Severity:
        """The severity of the event."""
        return self._severity

    def to_fields(self) -> dict[str, object]:
        """The keys of its line beside `kind` and `time`."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "time"}

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """Its fields in a line of any version, without `time`; what is missing or something else has its default."""
        readable = ((one.name, _READERS.get(str(one.type))) for one in fields(cls) if one.name != "time")
        found = {name: read(line.get(name)) for name, read in readable if read is not None}
        return {name: value for name, value in found.items() if value is not None}


# Every kind that this version writes.
EVENTS: dict[str, type[Event]] = {}
_Class = TypeVar("_Class", bound=type[Event])


def _registered(kind: str, severity: Severity = "info") -> Callable[[_Class], _Class]:
    def register(event: _Class) -> _Class:
        assert kind not in EVENTS, kind
        event._kind, event._severity = kind, severity
        EVENTS[kind] = event
        return event

    return register


@_registered("attempt")
@dataclass(frozen=True, kw_only=True)
class Attempt(Event):
    """Ranks are about to train. resumed_step: of the checkpoint that they go on from; None for a start."""

    number: int = 1
    world_size: int | None = None
    resumed_step: int | None = None


@_registered("length", "notice")
@dataclass(frozen=True, kw_only=True)
class Length(Event):
    """The steps of a run with a time budget, once they are known. text: the reason, as plan.json has it."""

    steps: int = 0
    text: str = ""


@_registered("waiting", "notice")
@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """What a run waits for, or waits for now."""

    wait: Wait = field(default_factory=lambda: Wait("unknown"))

    def to_fields(self) -> dict[str, object]:
        """The wait as JSON."""
        return {"wait": self.wait.as_json()}

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """Earlier versions wrote a sentence, as `text`."""
        found = Wait.from_json(line.get("wait")) or Wait.from_json(line.get("text"))
        return {} if found is None else {"wait": found}


@_registered("placement")
@dataclass(frozen=True, kw_only=True)
class Placed(Event):
    """Where the ranks of an attempt run, and how they reach each other. network: settings in words, by address."""

    placement: list[Place] = field(default_factory=list)
    network: dict[str, list[str]] = field(default_factory=dict)


@_registered("evaluation")
@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The held-out set after a step. metrics: by name, beside the loss. rows: that were evaluated."""

    step: int | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rows: int | None = None
    seconds: float | None = None

    def to_fields(self) -> dict[str, object]:
        """Metrics stand beside the other keys."""
        known = super().to_fields()
        metrics = known.pop("metrics")
        return {"step": known.pop("step"), "loss": known.pop("loss"), **cast("dict[str, object]", metrics), **known}

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """Each number that is nothing else is a metric."""
        known = {one.name for one in fields(cls)}
        numbers = ((name, reading.number(value)) for name, value in line.items() if name not in known)
        metrics = {name: value for name, value in numbers if value is not None}
        return {**super().fields_of(line), "metrics": metrics}


@_registered("checkpoint")
@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is whole. path: name of its folder. bytes, seconds: its size, and the time it took."""

    step: int | None = None
    path: str = ""
    seconds: float | None = None
    bytes: int | None = None


@_registered("checkpoint_failed", "warning")
@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event):
    """A checkpoint could not be written."""

    step: int | None = None
    error: str = ""


@_registered("early_stop")
@dataclass(frozen=True, kw_only=True)
class EarlyStop(Event):
    """Training ends because a metric no longer improves."""

    step: int | None = None
    metric: str = ""
    best: float | None = None
    best_step: int | None = None


class SourceCounts(TypedDict, total=False):
    """What a rank read of one source."""

    name: str
    rows: int
    tokens: int
    documents: int
    skipped: int
    epochs: int


class RankCounts(TypedDict, total=False):
    """What a rank read: requests tried again, tokens that did not fit a row, and counts by source."""

    retries: int
    cut: int
    sources: list[SourceCounts]


@_registered("data")
@dataclass(frozen=True, kw_only=True)
class DataRead(Event):
    """What reading cost and left out over all ranks: examples skipped, requests tried again, tokens cut off."""

    skipped: int = 0
    retries: int = 0
    cut: int = 0
    ranks: Sequence[RankCounts] = ()


@_registered("wandb")
@dataclass(frozen=True, kw_only=True)
class WandbStatus(Event):
    """Where the copy at W&B is. url: of the run there, while it is online. folder: on this disk, while it is not."""

    mode: str = ""
    url: str | None = None
    folder: str | None = None

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """The first version wrote a sentence alone: `W&B online: URL`."""
        if "mode" in line:
            return super().fields_of(line)
        mode, _, place = str(line.get("text") or "").removeprefix("W&B ").partition(": ")
        return {"mode": mode, ("url" if mode == "online" else "folder"): place or None}


@_registered("finished")
@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The trained model is written. path: name of its folder."""

    step: int | None = None
    path: str = ""


class Cause(TypedDict):
    """Why ranks failed: one message, and those that failed with it; no ranks where none had started."""

    message: str
    ranks: Sequence[int]


@_registered("failure", "error")
@dataclass(frozen=True, kw_only=True)
class AttemptFailed(Event):
    """An attempt failed, for these causes; `ranks` are those of all.

    then: what follows. wait_seconds: before the next attempt, which goes on from `checkpoint_step`, or from the start.
    failures: so far without a new checkpoint between them, of `max_failures` at most.
    outcome: how a run ends that was asked to stop, without a checkpoint of this attempt.
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
        """Earlier versions wrote one text, as `message`, which says what follows, too."""
        found, message = super().fields_of(line), reading.text(line.get("message"))
        if not found.get("causes") and message is not None:
            found["causes"] = [{"message": message, "ranks": list(reading.integers(line.get("ranks")) or ())}]
        return found


@_registered("notice", "notice")
@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """A message in words, as in a log."""

    text: str = ""


@dataclass(frozen=True, kw_only=True)
class OtherEvent(Event):
    """An event of a kind that this version does not know, such as one of a hook from outside.

    name: the kind. fields: further keys of its line.
    """

    name: str
    text: str = ""
    fields: Line = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Its own word."""
        return self.name

    def to_fields(self) -> dict[str, object]:
        """Its own keys."""
        return {**({"text": self.text} if self.text else {}), **self.fields}


def _causes(value: object) -> list[Cause]:
    found = [(one.get("message"), reading.integers(one.get("ranks"))) for one in reading.objects(value) or ()]
    return [{"message": message, "ranks": list(ranks or ())} for message, ranks in found if isinstance(message, str)]


_READERS: dict[str, Callable[[object], object]] = {
    **reading.READERS,
    "list[Place]": reading.objects,
    "dict[str, list[str]]": reading.texts_by_name,
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
    """The line of an event; `time` is now where it has none."""
    moment = time.time() if event.time is None else event.time
    return {"kind": event.kind, "time": moment, **event.to_fields()}


class EventWriter:
    """Appends events to a file that several processes may share; never raises. lost: events that were not written."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonlWriter(path)

    @property
    def lost(self) -> int:
        """Events that could not be written, for instance because the disk is full."""
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
    """Reads what was added to a file of events since the last look, as `JsonlTail` does."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._lines = JsonlTail(path, offset)

    def new(self) -> list[Event]:
        """The events of lines that are complete by now and were not returned before.

        Raises:
            OSError: the file is there but cannot be read.
        """
        return [event_of(line) for line in self._lines.new()]


def read_events(path: Path) -> list[Event]:
    """All events of a file; none where there is no file.

    Raises:
        OSError: it is there but cannot be read.
    """
    return EventTail(path).new()
