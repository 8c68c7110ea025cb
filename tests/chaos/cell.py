"""A cell of the matrix: one fault, how it is put into a run, and what became of the run."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shardyard
from chaos.trial import Fault, Measured, State, Trial, trial
from shardyard.cli.view.troubles import troubles
from shardyard.launch.describe import describe
from shardyard.tracking.run.events import event_of

# A run that ends is resumed by one command, and that may meet the fault again.
MOST_RESUMES = 3
TRAINS_REFERENCE = threading.Lock()
PACKAGE = Path(shardyard.__file__).parent


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    went_on: by itself, after how many resumes, or not at all. state: what equals the undisturbed run, or what differs.
    left: what was left over. told: what the run said of the fault. good: whether all is as it should be.
    """

    went_on: str
    state: str
    detected: float | None = None
    next_step: float | None = None
    lost: int | None = None
    left: Sequence[str] = ()
    told: str = ""
    good: bool = True


@dataclass(frozen=True)
class Where:
    """Folders of the matrix: of this cell, and of runs that were not disturbed."""

    cell: Path
    shared: Path

    def reference(self, **sections: Any) -> State:
        """What the run of these sections ends with undisturbed; trained once."""
        text = json.dumps([sections, _code()], sort_keys=True)
        name = f"reference-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        kept = self.shared / f"{name}.json"
        with TRAINS_REFERENCE:
            if not kept.exists():
                with trial(self.shared / name, **sections) as plain:
                    code = plain.run("launch", plain.recipe)
                    assert code == 0, plain.output[-1]
                    kept.write_text(json.dumps(asdict(plain.state())))
        found = json.loads(kept.read_text())
        return State(
            found["weights"],
            {int(step): rows for step, rows in found["rows"].items()},
            {int(step): loss for step, loss in found["losses"].items()},
        )


def _code() -> str:
    """A digest of the package: another arithmetic ends in other bits, and references of older code count no more."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


Run = Callable[[Where], Outcome]


@dataclass(frozen=True)
class Cell:
    """`kind`: the class of faults; `fault` and `how` it is injected, in words."""

    name: str
    kind: str
    fault: str
    how: str
    run: Run


def finish(one: Trial, code: int, *more: object) -> str:
    """Resume a run until it is finished; says how it went on."""
    if code == 0:
        return "by itself"
    for number in range(1, MOST_RESUMES + 1):
        if one.run("resume", "latest", *more) == 0:
            return f"ended with code {code}; `resume` {number}×"
    return f"not at all: {one.output[-1].strip().splitlines()[-1][:200] if one.output[-1].strip() else 'no word'}"


def told(one: Trial) -> str:
    """The first line of the first failure that the run reports."""
    failures = [line for line in one.lines("events.jsonl") if line["kind"] == "failure"]
    if failures:
        return str(failures[0]["causes"][0]["message"]).splitlines()[0][:160]
    found = troubles([event_of(line) for line in one.lines("events.jsonl")])
    if found:
        return describe(found[0]).splitlines()[0][:160]
    lines = [line for output in one.output for line in output.splitlines() if line.startswith("Error")]
    return lines[0][:160] if lines else ""


def outcome(one: Trial, went_on: str, reference: State, measured: Measured | None = None) -> Outcome:
    """The outcome of a run that should have ended like the undisturbed one."""
    differs = one.state().differs(reference) if not went_on.startswith("not at all") else "not finished"
    left = one.box.settled()
    measured = measured or one.measured()
    return Outcome(
        went_on,
        differs or "bitwise",
        measured.detected,
        measured.next_step,
        measured.lost,
        left,
        told(one),
        good=not differs and not left,
    )


def launched(where: Where, faults: Sequence[Fault], **sections: Any) -> Outcome:
    """Launch a run with faults; if it ends, resume it."""
    reference = where.reference(**sections)
    with trial(where.cell, **sections) as one:
        one.faults = faults
        code = one.run("launch", one.recipe)
        if missing := [fault.name for fault in faults if one.fault_time(fault.name) is None]:
            return Outcome("not at all", f"the fault did not happen: {', '.join(missing)}", good=False)
        return outcome(one, finish(one, code), reference)
