"""`profile/` of a run folder: the request for a profile, traces, and where the time of the profiled steps went.

Imports only the standard library, because `shardyard runs` reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from shardyard.tracking.files import write_atomically
from shardyard.tracking.run.folder import RunFolder

FILE = "profile.json"
# Parts with a smaller share of a step are not shown.
LEAST_SHARE = 0.001
# Parts of a step in the order in which they are shown, with what they are.
PARTS: Mapping[str, str] = {
    "data": "waiting for the batch",
    "forward": "forward pass",
    "backward": "backward pass",
    "communication": "communication between ranks that no computation hides",
    "optimizer": "clipping and update",
    "metrics": "losses, metrics and records",
    "hooks": "evaluations, checkpoints and other hooks",
    "waiting": "everything else: Python between the parts, or a GPU without work",
}


@dataclass(frozen=True)
class RankTimes:
    """Seconds of a mean step of one rank, whole and by part.

    reading_seconds: time on a core of the threads that make rows in the rank's process, beside the step.
    """

    rank: int
    step_seconds: float
    parts: Mapping[str, float]
    reading_seconds: float = 0.0


@dataclass(frozen=True)
class Advice:
    """What to change. share: of the step, that is concerned. set: overrides for `-s`, if fields of the recipe do it."""

    share: float
    text: str
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """The profile of steps `first` to `last`: times of all ranks, and what to change first."""

    first: int
    last: int
    ranks: tuple[RankTimes, ...]
    advice: tuple[Advice, ...]

    @property
    def step_seconds(self) -> float:
        """Of the mean rank."""
        return sum(one.step_seconds for one in self.ranks) / len(self.ranks)

    def shares(self) -> dict[str, float]:
        """Part → share of the step, mean over the ranks."""
        whole = sum(one.step_seconds for one in self.ranks) or 1.0
        return {part: sum(one.parts.get(part, 0.0) for one in self.ranks) / whole for part in PARTS}


def folder_of(run: RunFolder) -> Path:
    """Where the profile of a run is."""
    return run.path / "profile"


def request(run: RunFolder, steps: int) -> None:
    """Ask the next attempt of a run to profile some of its first steps."""
    folder_of(run).mkdir(exist_ok=True)
    write_atomically(folder_of(run) / "request.json", json.dumps({"steps": steps}) + "\n")


def requested(run: RunFolder) -> int:
    """How many steps are to be profiled; 0 without a request."""
    try:
        return int(json.loads((folder_of(run) / "request.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def keep(run: RunFolder, profile: Profile) -> None:
    """Write a profile, and remove the request for it."""
    write_atomically(folder_of(run) / FILE, json.dumps({"format": 1, **asdict(profile)}, indent=2) + "\n")
    (folder_of(run) / "request.json").unlink(missing_ok=True)


def read(run: RunFolder) -> Profile | None:
    """The newest profile of a run; None if it has none that can be read."""
    try:
        return parsed((folder_of(run) / FILE).read_bytes())
    except OSError:
        return None


def parsed(text: bytes) -> Profile | None:
    """The profile of the file that `keep` writes; None if it is another one."""
    try:
        found = json.loads(text)
        ranks = tuple(
            RankTimes(
                int(one["rank"]),
                _finite(one["step_seconds"]),
                {str(part): _finite(seconds) for part, seconds in one["parts"].items()},
                _finite(one["reading_seconds"]),
            )
            for one in found["ranks"]
        )
        advice = tuple(
            Advice(_finite(one["share"]), str(one["text"]), tuple(map(str, one["set"]))) for one in found["advice"]
        )
        return Profile(int(found["first"]), int(found["last"]), ranks, advice) if ranks else None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def lines(profile: Profile) -> Sequence[str]:
    """A profile in words: the parts of a step, and what to change first."""
    shares = profile.shares()
    shown = [part for part in PARTS if shares[part] >= LEAST_SHARE]
    told = [
        f"profile of steps {profile.first} to {profile.last}: {1000 * profile.step_seconds:.1f} ms a step"
        + (f", mean of {len(profile.ranks)} ranks" if len(profile.ranks) > 1 else "")
    ]
    told += [
        f"  {shares[part]:6.1%}  {1000 * shares[part] * profile.step_seconds:8.1f} ms  {part:13}  {PARTS[part]}"
        for part in shown
    ]
    if profile.advice:
        told.append("to change first:")
    for number, one in enumerate(profile.advice, 1):
        settings = "".join(f" -s {setting}" for setting in one.set)
        told.append(f"  {number}. {one.text}" + (f" Try{settings}" if settings else ""))
    return told
