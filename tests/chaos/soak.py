"""A long run with random faults, and its goodput.

    python -m chaos.soak [--seed 1] [--minutes 10] [--every 60] [--check]

Ranks die at random moments (SIGKILL, SIGSEGV, SIGABRT, drawn by the seed), on average every so many seconds. *Goodput*
is the share of the time in which the run was not busy getting back to a step that it had reached before:

    1 - (sum over faults of the time from the fault until a later step than the last one before it) / (time of the run)

`--check` trains the same steps undisturbed and compares the loss of each step, bit by bit.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from chaos.ranks import ranks_of
from chaos.trial import Trial, trial
from support.cli import Command
from support.waiting import until

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
# More than any soak reaches; the schedule of the learning rate depends on it.
STEPS = 1_000_000
SECTIONS = {
    "train": {"steps": STEPS},
    "checkpoint": {"every": 200, "keep": 2},
    "evaluate": {"every": STEPS},
    "cluster": {"max_failures": 1000},
}
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Soaked:
    """What a soak found. losses: of each step, as trained last; recoveries: seconds from each fault until it was made
    up for; seconds: of the run, from its first step on."""

    seconds: float
    recoveries: Sequence[float]
    losses: dict[int, float]
    left: Sequence[str]
    spares: int

    @property
    def goodput(self) -> float:
        """Between 0 and 1."""
        return 1.0 - sum(self.recoveries) / self.seconds


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


def soak(folder: Path, *, seed: int, seconds: float, every: float, **variables: str) -> Soaked:
    """Train for some seconds with a fault every so many."""
    draw = random.Random(seed)
    faults: list[float] = []
    with trial(folder, **SECTIONS) as one:
        one.variables = variables
        with one.start("launch", one.recipe) as command:
            command.wait_for_step(1)
            began = time.time()
            due = began + draw.expovariate(1 / every)
            while time.time() < began + seconds and command.process.poll() is None:
                if time.time() >= due and (moment := _hurt(one, draw)) is not None:
                    faults.append(moment)
                    due = time.time() + draw.expovariate(1 / every)
                time.sleep(LOOK_SECONDS)
            ended = time.time()
            _stop(command)
        steps = [(line["time"], int(line["step"])) for line in one.lines("metrics.jsonl") if "train/loss" in line]
        spares = sum(bool(line.get("spares")) for line in one.lines("events.jsonl") if line["kind"] == "recovered")
        losses = one.state().losses
        return Soaked(ended - began, made_up(faults, steps, ended), losses, one.box.settled(), spares)


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


def undisturbed(folder: Path, last: int, seconds: float) -> dict[int, float]:
    """The losses of a run without faults, at least up to a step, which takes it about so many seconds."""

    def there() -> bool:
        assert command.process.poll() is None, command.process.communicate()[0]
        return bool(command.metrics()) and command.metrics()[-1]["step"] >= last

    with trial(folder, **SECTIONS) as one, one.start("launch", one.recipe) as command:
        until(there, f"the undisturbed run has done step {last}", seconds=300 + 3 * seconds, every=2.0)
        _stop(command)
        return one.state().losses


def main() -> int:
    """Print the figures; returns 1 if a loss differs or something is left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults, on average")
    parser.add_argument("--check", action="store_true", help="compare with an undisturbed run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        found = soak(Path(scratch) / "soak", seed=options.seed, seconds=60 * options.minutes, every=options.every)
        last = max(found.losses)
        count = len(found.recoveries)
        lines = [
            f"{count} faults in {found.seconds:.0f} s, {found.spares} recoveries by spares; step {last}",
            "made up for after: " + ", ".join(f"{seconds:.1f}" for seconds in found.recoveries) + " s",
            f"goodput {found.goodput:.1%}",
            f"left over: {', '.join(found.left) or 'nothing'}",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        differ = 0
        if options.check:
            plain = undisturbed(Path(scratch) / "plain", last, found.seconds)
            differ = sum(found.losses.get(step) != plain.get(step) for step in range(1, last + 1))
            sys.stdout.write(f"losses that differ from the undisturbed run: {differ} of {last}\n")
    return 1 if differ or found.left else 0


if __name__ == "__main__":
    sys.exit(main())
