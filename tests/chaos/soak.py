"""A long run with random faults, and its goodput.

    python -m chaos.soak [--seed 1] [--minutes 10] [--every 60] [--faults N] [--check]

Ranks die at random moments (SIGKILL, SIGSEGV, SIGABRT, drawn by the seed), on average every so many seconds. *Goodput*
is the share of the time in which the run was not busy getting back to a step that it had reached before:

    1 - (sum over faults of the time from the fault until a later step than the last one before it) / (time of the run)

`--check` trains the same steps undisturbed and compares, bit by bit: rows and loss of each step, and the files of the
last checkpoint (weights, optimizer, random states, data).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from chaos.ranks import ranks_of
from chaos.trial import State, Trial, trial
from support.cli import Command

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
# More than any soak reaches; the schedule of the learning rate depends on it.
STEPS = 1_000_000
SECTIONS = {
    "train": {"steps": STEPS},
    "evaluate": {"every": STEPS},
    "cluster": {"max_failures": 1000},
}
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Soaked:
    """What a soak found. state: rows and loss of each step, as trained last, and digests of the last checkpoint;
    recoveries: seconds from each fault until it was made up for; seconds: of the run, from its first step on."""

    seconds: float
    recoveries: Sequence[float]
    state: State
    left: Sequence[str]
    spares: int

    @property
    def goodput(self) -> float:
        """Between 0 and 1."""
        return 1.0 - sum(self.recoveries) / self.seconds

    @property
    def last(self) -> int:
        """The last step."""
        return max(self.state.losses)

    def in_words(self) -> list[str]:
        """The figures, as lines."""
        count = len(self.recoveries)
        return [
            f"{count} faults in {self.seconds:.0f} s, {self.spares} recoveries by spares; step {self.last}",
            "made up for after: " + ", ".join(f"{seconds:.1f}" for seconds in self.recoveries) + " s",
            f"goodput {self.goodput:.1%}",
            f"left over: {', '.join(self.left) or 'nothing'}",
        ]


def made_up(faults: Sequence[float], steps: Sequence[tuple[float, int]], end: float) -> list[float]:
    """Seconds from each fault until a step is done that is later than all before it; `steps`: times and numbers, in the
    order of the file. Faults during a recovery belong to it."""
    found: list[float] = []
    until = 0.0
    for fault in faults:
        reached = max((step for moment, step in steps if moment <= fault), default=0)
        after = next((moment for moment, step in steps if moment > fault and step > reached), end)
        found.append(max(0.0, after - max(fault, until)))
        until = max(until, after)
    return found


def is_made_up(fault: float, steps: Sequence[tuple[float, int]]) -> bool:
    """Whether a step is done that is later than all before a fault."""
    reached = max((step for moment, step in steps if moment <= fault), default=0)
    return any(moment > fault and step > reached for moment, step in steps)


def soak(
    folder: Path, *, seed: int, seconds: float, every: float, most: int | None = None, save_every: int = 200
) -> Soaked:
    """Train for some seconds with a fault every so many, or until `most` faults were made up for; with a checkpoint
    every `save_every` steps."""
    draw = random.Random(seed)
    faults: list[float] = []
    with trial(folder, **_sections(save_every)) as one:
        with one.start("launch", one.recipe) as command:
            command.wait_for_step(1)
            began = time.time()
            due = began + draw.expovariate(1 / every)
            while time.time() < began + seconds and command.process.poll() is None and len(faults) != most:
                if time.time() >= due and (moment := _hurt(one, draw)) is not None:
                    faults.append(moment)
                    due = time.time() + draw.expovariate(1 / every)
                time.sleep(LOOK_SECONDS)
            if len(faults) == most:
                # Once the last fault is made up for.
                command.wait_for(lambda: is_made_up(faults[-1], _steps(one)))
            ended = time.time()
            _stop(command)
        spares = sum(bool(line.get("spares")) for line in one.lines("events.jsonl") if line["kind"] == "recovered")
        recoveries = made_up(faults, _steps(one), ended)
        return Soaked(ended - began, recoveries, _state(one), one.box.settled(), spares)


def _sections(save_every: int) -> dict[str, Any]:
    return {**SECTIONS, "checkpoint": {"every": save_every, "keep": 2}}


def _steps(one: Trial) -> list[tuple[float, int]]:
    """Time and number of each recorded step, in the order of the file."""
    return [(line["time"], int(line["step"])) for line in one.lines("metrics.jsonl") if "train/loss" in line]


def _state(one: Trial) -> State:
    """Rows and losses, and digests of the newest checkpoint: the run has no `final/`."""
    newest = max((one.folder / "checkpoints").glob("step-*"))
    files = [*sorted(newest.glob("rank-*.safetensors")), newest / "data.json"]
    return replace(one.state(), weights={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


def _hurt(one: Trial, draw: random.Random) -> float | None:
    """End a random rank in a random way; None while there are no ranks."""
    with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError, OSError):
        rank = draw.choice(ranks_of(one))
        if "RankWorker" in " ".join(rank.cmdline()) and rank.status() != psutil.STATUS_ZOMBIE:
            moment = time.time()
            rank.send_signal(draw.choice(SIGNALS))
            return moment
    return None


def _stop(command: Command) -> None:
    command.process.send_signal(signal.SIGTERM)
    code, output = command.finish()
    assert code == 143, output


def undisturbed(folder: Path, last: int, seconds: float, save_every: int = 200) -> State:
    """What a run without faults has after a step, which takes it about so many seconds."""
    with trial(folder, **_sections(save_every)) as one:
        one.patience_seconds = 300 + 3 * seconds
        code = one.run("launch", one.recipe, "--until", last)
        assert code == 0, one.output[-1]
        return _state(one)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; returns 1 if something differs or is left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults, on average")
    parser.add_argument("--faults", type=int, help="end once so many are made up for")
    parser.add_argument("--save-every", type=int, default=200, help="steps between two checkpoints")
    parser.add_argument("--check", action="store_true", help="compare with an undisturbed run")
    parser.add_argument("--folder", type=Path, help="where the runs stay; default: nowhere")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        top = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        found = soak(
            top / "soak",
            seed=options.seed,
            seconds=60 * options.minutes,
            every=options.every,
            most=options.faults,
            save_every=options.save_every,
        )
        sys.stdout.write("\n".join(found.in_words()) + "\n")
        sys.stdout.flush()
        differs = ""
        if options.check:
            plain = undisturbed(top / "plain", found.last, found.seconds, options.save_every)
            differs = found.state.differs(plain)
            sys.stdout.write(f"against the undisturbed run: {differs or 'bitwise equal'}\n")
    return 1 if differs or found.left else 0


if __name__ == "__main__":
    sys.exit(main())
