"""Where the time of a run's profiled steps went, for its page."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from shardyard.dashboard.index.files import read_below
from shardyard.redaction import scrub
from shardyard.tracking.run import profile


class PartPayload(TypedDict):
    """A part of a step, what it is, and its share. slowest, slowest_seconds: the rank that spends most in it."""

    part: str
    meaning: str
    share: float
    seconds: float
    slowest: int
    slowest_seconds: float


class AdvicePayload(TypedDict):
    """What to change. share: of the step, that is concerned. set: overrides for `-s`."""

    share: float
    text: str
    set: list[str]


class ProfilePayload(TypedDict):
    """The profile of steps `first` to `last`: seconds of a step of the mean of `ranks`."""

    first: int
    last: int
    ranks: int
    step_seconds: float
    parts: list[PartPayload]
    advice: list[AdvicePayload]


def profiled(folder: Path) -> ProfilePayload | None:
    """The newest profile of a run; None if it has none that can be read."""
    try:
        found = profile.parsed(read_below(folder, "profile", profile.FILE))
    except OSError:
        return None
    if found is None:
        return None
    parts: list[PartPayload] = []
    for part, share in found.shares().items():
        slowest = max(found.ranks, key=lambda one: one.parts.get(part, 0.0))
        parts.append(
            {
                "part": part,
                "meaning": profile.PARTS[part],
                "share": share,
                "seconds": share * found.step_seconds,
                "slowest": slowest.rank,
                "slowest_seconds": slowest.parts.get(part, 0.0),
            }
        )
    return {
        "first": found.first,
        "last": found.last,
        "ranks": len(found.ranks),
        "step_seconds": found.step_seconds,
        "parts": [one for one in parts if one["share"] >= profile.LEAST_SHARE],
        "advice": [{"share": one.share, "text": scrub(one.text), "set": list(one.set)} for one in found.advice],
    }
