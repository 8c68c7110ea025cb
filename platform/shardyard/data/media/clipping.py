"""Recordings longer than a model hears, cut together with their text at the end of a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardyard.data.sources.kinds import SEGMENT_TEXTS


@dataclass(frozen=True)
class Segment:
    """A part of a transcript, and where in the recording it ends, in seconds."""

    text: str
    end: float


def segments_of(value: Any) -> list[Segment]:
    """The segments of a transcript in the order of their ends; empty if the value holds none that can be used.

    A segment has `end`, or `timestamp` of start and end; and its `text`, `word`, `segment` or `sentence`.
    """
    found = [_segment(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    if any(segment is None for segment in found):
        return []
    segments = [segment for segment in found if segment is not None]
    ends = [segment.end for segment in segments]
    return segments if ends == sorted(ends) else []


def _segment(item: Any) -> Segment | None:
    if not isinstance(item, Mapping):
        return None
    text = next((item[name] for name in SEGMENT_TEXTS if isinstance(item.get(name), str)), None)
    times = item.get("timestamp") or item.get("timestamps") or (None, item.get("end"))
    end = times[-1] if isinstance(times, Sequence) and len(times) == 2 else None
    return None if text is None or isinstance(end, bool | str) or end is None else Segment(text, float(end))


def text_until(text: str, segments: Sequence[Segment], last: int) -> str:
    """The part of a transcript that the segments up to `last` hold, in its own spelling if it begins with them."""
    spoken = [segment.text for segment in segments[: last + 1]]
    wanted = sum(len(_dense(part)) for part in spoken)
    if _dense(text).startswith("".join(map(_dense, spoken))):
        places = [place for place, character in enumerate(text) if not character.isspace()]
        return text[: places[wanted - 1] + 1] if wanted else ""
    return ("" if any(part[:1].isspace() for part in spoken[1:]) else " ").join(spoken).strip()


def _dense(text: str) -> str:
    return "".join(text.split())
