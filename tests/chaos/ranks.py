"""Faults within a rank: it dies, stands still, fails at each place of a step; wrong numbers; memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from chaos.cell import Cell, Outcome, Where, finish, launched, outcome, told
from chaos.trial import AT, Fault, Trial, trial

PLACES = {"forward": "forward", "backward": "backward", "update": "step", "save": "save", "load": "load"}
SIGNALS = {"SIGKILL": "signal:SIGKILL", "SIGSEGV": "segv", "SIGSTOP": "signal:SIGSTOP"}
CGROUPS = Path("/sys/fs/cgroup")


def _faults(place: str, act: str) -> list[Fault]:
    """Those that make this one happen: a load needs a restart."""
    if place == "load":
        return [Fault("forward", "signal:SIGKILL", rank=0, name="before"), Fault("load", act, step=0)]
    return [Fault(place, act)]


def _died(place: str, act: str, where: Where) -> Outcome:
    return launched(where, _faults(place, act))


def _always(where: Where) -> Outcome:
    """A step that fails each time: the run must end with a word, and go on once the cause is gone."""
    reference = where.reference()
    with trial(where.cell) as one:
        one.faults = [Fault("forward", "raise:always at this step", exact=True, times=100)]
        code = one.run("launch", one.recipe)
        attempts = len(list((one.box.folder / "marks").iterdir()))
        one.faults = []
        found = outcome(one, finish(one, code), reference)
        tries = f"{attempts} tries, then the end"
        return Outcome(**{**vars(found), "told": f"{tries}: {told(one)}", "good": found.good and code == 1})


def _numbers(how: str, where: Where) -> Outcome:
    """Numbers that are not finite, or wrong: what the run does with them."""
    reference = where.reference()
    with trial(where.cell) as one:
        one.faults = [Fault("weights", f"tensor:{how}", exact=True)]
        code = one.run("launch", one.recipe)
        one.faults = []
        return outcome(one, finish(one, code), reference)


def _flipped(where: Where) -> Outcome:
    """A bit of a replica is another one: found by the next comparison."""
    replicas = {"workers": 2, "replicas": {"every": 4}}
    return launched(where, [Fault("weights", "tensor:flip", exact=True)], cluster=replicas)


def _batch(action: str, where: Where) -> Outcome:
    """A batch whose gradient is no number, each time that it comes: the run ends like one that was told to skip it."""
    reference = where.reference(train={"skip_steps": [AT]})
    with trial(where.cell, anomalies={"on_nan": action}) as one:
        one.faults = [Fault("batch", "nan", exact=True, times=9)]
        code = one.run("launch", one.recipe)
        found = outcome(one, finish(one, code), reference)
        return Outcome(**{**vars(found), "good": found.good and code == 0})


@contextmanager
def _cgroup(controller: str, **settings: int) -> Iterator[Path]:
    """A control group of version 1 with these limits."""
    folder = CGROUPS / controller / f"chaos-{os.getpid()}"
    folder.mkdir()
    try:
        for name, value in settings.items():
            (folder / f"{controller}.{name}").write_text(str(value))
        yield folder
    finally:
        for task in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (folder.parent / "cgroup.procs").write_text(task)
        with contextlib.suppress(OSError):
            folder.rmdir()


def ranks_of(one: Trial) -> list[psutil.Process]:
    """The processes of the ranks, in their order."""
    places = one.lines_of_info()["placement"]
    return [psutil.Process(pid) for place in places for pid in place["pids"]]


def _memory(where: Where) -> Outcome:
    """A rank takes memory on and on within a group that has 3 GiB."""
    reference = where.reference()
    with trial(where.cell) as one, _cgroup("memory", limit_in_bytes=3 << 30) as group:
        one.faults = [Fault("forward", "memory")]
        with one.start("launch", one.recipe) as command:
            (group / "cgroup.procs").write_text(str(command.process.pid))
            code, output = command.finish()
        one.output.append(output)
        return outcome(one, finish(one, code), reference)


def _quota(where: Where) -> Outcome:
    """One rank may use a tenth of a core from step 25 on: no failure, only time."""
    reference = where.reference()
    with trial(where.cell) as one, _cgroup("cpu", cfs_quota_us=10_000) as group:
        with one.held("launch", one.recipe):
            (group / "cgroup.procs").write_text(str(ranks_of(one)[1].pid))
            one.note_fault()
        return outcome(one, finish(one, one.code), reference)


def cells() -> list[Cell]:
    """All of them."""
    found = [
        Cell(
            f"{name.lower()}-{PLACES[place]}",
            "a rank",
            f"{name} of a rank in {PLACES[place]}",
            "the rank sends it to itself at this place of step 25"
            if act.startswith("signal")
            else "the rank reads address 0 there",
            partial(_died, place, act),
        )
        for name, act in SIGNALS.items()
        for place in PLACES
    ]
    inside = "a hook of the tests, in rank 1 at step 25"
    batch = "rank 1's loss of step 25, whenever it is computed"
    return [
        *found,
        Cell("loop", "a rank", "a rank in an endless loop", inside, partial(_died, "forward", "loop")),
        Cell("exit", "a rank", "a rank that exits with code 0", inside, partial(_died, "backward", "exit:0")),
        Cell("raise", "a rank", "an exception in a rank", inside, partial(_died, "backward", "raise:once")),
        Cell("always", "a rank", "an exception always at step 25", "the same in each attempt", _always),
        Cell("memory", "a rank", "a limit of memory", "control group of 3 GiB, a rank takes more", _memory),
        Cell("quota", "a rank", "CPU quota on one rank", "control group of 0.1 cores from step 25 on", _quota),
        Cell("nan", "numbers", "a weight becomes NaN", inside, partial(_numbers, "nan")),
        Cell("explosion", "numbers", "a weight becomes 1e30", inside, partial(_numbers, "1e30")),
        Cell("flip", "numbers", "a flipped bit in the replica of one rank", inside, _flipped),
        Cell("nan-batch-skip", "numbers", "a batch gives NaN, `skip`", batch, partial(_batch, "skip")),
        Cell("nan-batch-rollback", "numbers", "a batch gives NaN, `rollback`", batch, partial(_batch, "rollback")),
    ]
