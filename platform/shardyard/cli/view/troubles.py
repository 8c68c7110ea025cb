"""What went wrong in a run, and how it went on, as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from shardyard.launch.describe import describe
from shardyard.tracking.run.events import AnomalyDocuments, AnomalyFound, Event, Recovered

_MOST = 10


def troubles(events: Sequence[Event]) -> list[Event]:
    """Failures, what was lost, and recoveries, in order."""
    told = AnomalyFound | AnomalyDocuments | Recovered
    return [one for one in events if one.severity in ("warning", "error") or isinstance(one, told)]


def lines(events: Sequence[Event]) -> list[str]:
    """The newest of them under a heading; nothing if all went well."""
    found = troubles(events)
    if not found:
        return []
    earlier = f"; {len(found) - _MOST} earlier ones in events.jsonl" if len(found) > _MOST else ""
    shown = [f"what went wrong, newest last{earlier}:"]
    for event in found[-_MOST:]:
        first, *others = describe(event).splitlines() or [event.kind]
        shown += [f"  {_moment(event)}  {first}", *(f"    {line}" for line in others)]
    return shown


def _moment(event: Event) -> str:
    return datetime.fromtimestamp(event.time or 0.0, UTC).isoformat(timespec="seconds")
