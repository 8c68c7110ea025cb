"""The base of all events, and the registry of their kinds.

Imports only the standard library, because every process that follows a run reads events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeVar

from shardyard.tracking.run import reading

# info: normal operation. notice: of interest to users. warning: something was lost or did not work. error: the attempt
# failed.
Severity = Literal["info", "notice", "warning", "error"]

# A line of events.jsonl.
Line = Mapping[str, object]
# How a field is read, by its type as it is written.
READERS: dict[str, Callable[[object], object]] = {**reading.READERS}


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of a run. time: seconds since 1970; if None, the time of writing."""

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
        """The keys of its line other than `kind` and `time`."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "time"}

    @classmethod
    def fields_of(cls, line: Line) -> dict[str, object]:
        """Its fields from a line of any version, without `time`; missing or invalid ones have their defaults."""
        readable = ((one.name, READERS.get(str(one.type))) for one in fields(cls) if one.name != "time")
        found = {name: read(line.get(name)) for name, read in readable if read is not None}
        return {name: value for name, value in found.items() if value is not None}


# All kinds that this version writes.
EVENTS: dict[str, type[Event]] = {}
_Class = TypeVar("_Class", bound=type[Event])


def registered(kind: str, severity: Severity = "info") -> Callable[[_Class], _Class]:
    def register(event: _Class) -> _Class:
        assert kind not in EVENTS, kind
        event._kind, event._severity = kind, severity
        EVENTS[kind] = event
        return event

    return register
