"""Faults of files and disks: damaged checkpoints, code in them, full and failing disks, kills within a save."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from chaos.box import Box
from chaos.cell import Cell, Outcome, Where, finish, outcome, told
from chaos.trial import EVERY, Fault, Measured, Trial, trial
from support.forged import forge, to_first_layout, with_code

# One of them is in what a run says of its disk.
WORDS = ("Error", "failed", "disk is full", "not be written")
# How a save fails: the call and its error. With a full disk the run first removes an older checkpoint and tries again.
SAVE_ERRORS = {
    "no space left": ("pwritev", errno.ENOSPC, 2),
    "an I/O error": ("fsync", errno.EIO, 1),
    "a read-only file system": ("open", errno.EROFS, 1),
}
# Every operation of a save of ranks 0 and 1; numbers that do not occur are ignored.
MOST_OPERATIONS = (30, 12)
LONG_SECONDS = 1500.0


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _swap(path: Path) -> None:
    """With the file of the same name of the checkpoint before."""
    checkpoint = next(parent for parent in path.parents if parent.name.startswith("step-"))
    before = sorted(checkpoint.parent.glob("step-*"))[-2] / path.relative_to(checkpoint)
    aside = path.with_name("aside")
    path.rename(aside)
    before.rename(path)
    aside.rename(before)


def _largest(checkpoint: Path) -> Path:
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _damaged(damage: Callable[[Path], None], where: Where) -> Outcome:
    """A run is paused at step 30, its newest checkpoint damaged, and resumed."""
    reference = where.reference()
    with trial(where.cell) as one:
        one.pause()
        damage(_largest(newest(one)))
        found = outcome(one, finish(one, 1), reference)
        said = [
            line["text"] for line in one.lines("events.jsonl") if line["kind"] == "notice" and "skipped" in line["text"]
        ]
        return Outcome(**{**vars(found), "told": said[0][:160] if said else "", "good": found.good and bool(said)})


def newest(one: Trial) -> Path:
    """The newest checkpoint."""
    return sorted((one.folder / "checkpoints").glob("step-*"))[-1]


def _malicious(where: Where) -> Outcome:
    """A checkpoint with code in it and a matching manifest: it is refused, and nothing of it runs."""
    reference = where.reference()
    with trial(where.cell) as one:
        one.pause()
        trace, checkpoint = one.box.folder / "executed", newest(one)
        step = int(checkpoint.name.removeprefix("step-")) - 10
        # Files of today's format cannot hold code; those of the first one could.
        victim = max((to_first_layout(checkpoint) / "engine").iterdir(), key=lambda path: path.stat().st_size)
        states = torch.load(victim, weights_only=False)
        forge(checkpoint, f"engine/{victim.name}", with_code(states, trace))
        code = one.run("resume", "latest")
        refused = one.output[-1].strip().splitlines()[-1] if code else "it was not read"
        if code:
            code = one.run("resume", "latest", "--step", step)
        found = outcome(one, f"refused; `resume --step {step}`" if code == 0 else f"code {code}", reference)
        return Outcome(**{**vars(found), "told": refused[:160], "good": found.good and not trace.exists()})


class _Full:
    """A small disk in memory as the runs folder; `hurt` fills it, `mend` empties it."""

    def __init__(self, folder: Path, size: str = "24m") -> None:
        self.runs = folder / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.runs], check=True)

    def hurt(self, box: Box) -> None:
        with contextlib.suppress(OSError), open(f"/proc/{box.keeper}/root{self.runs}/filler", "wb") as file:
            while True:
                file.write(bytes(1 << 16))

    def mend(self, box: Box) -> None:
        (self.runs / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.runs], check=False)


class _ReadOnly:
    """A disk with ext4 as the runs folder; `hurt` lets the kernel find an error in it, as it does when a disk dies:
    the file system becomes read-only, and what was not synced is lost. `mend` checks and mounts it again."""

    def __init__(self, folder: Path, size: str = "64m") -> None:
        self.runs, self.image = folder / "runs", folder / "disk"
        self.runs.mkdir(parents=True, exist_ok=True)
        subprocess.run(["truncate", "-s", size, self.image], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", self.image, self.runs], check=True)
        found = ["findmnt", "-no", "SOURCE", self.runs]
        self.device = subprocess.run(found, check=True, capture_output=True, text=True).stdout.strip()

    def hurt(self, box: Box) -> None:
        Path(f"/sys/fs/ext4/{Path(self.device).name}/trigger_fs_error").write_text("chaos")

    def mend(self, box: Box) -> None:
        box.run("umount", self.runs)
        subprocess.run(["umount", self.runs], check=True)
        subprocess.run(["e2fsck", "-fy", self.image], check=False, capture_output=True)
        self._mount()
        done = box.run("mount", self.device, self.runs)
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.runs], check=False)


def _disk(kind: type[_Full | _ReadOnly], where: Where) -> Outcome:
    """The disk of the run is full, or becomes read-only, from step 25 on; then a person mends it and resumes."""
    reference = where.reference()
    with contextlib.closing(kind(where.cell)) as disk, trial(where.cell) as one:
        with one.held("launch", one.recipe):
            one.note_fault()
            disk.hurt(one.box)
        one.faults = []
        disk.mend(one.box)
        said = [line for line in one.output[-1].splitlines() if any(word in line for word in WORDS)]
        found = outcome(one, finish(one, one.code), reference)
        return Outcome(
            **{**vars(found), "told": said[0][:160] if said else "no word", "good": found.good and bool(said)}
        )


def _save_error(fault: Fault, where: Where) -> Outcome:
    """A save fails: the run goes on without it, and says where, why and what to do: in an event, in the terminal, and
    afterwards in `runs RUN`."""
    reference = where.reference()
    with trial(where.cell) as one:
        one.faults = [fault]
        code = one.run("launch", one.recipe)
        one.faults = []
        found = outcome(one, finish(one, code), reference)
        one.run("runs", one.folder)
        shown = {"the terminal": one.output[0], "`runs RUN`": one.output[-1]}
        wanted = _words_of_save_error(one, int(fault.act.removeprefix("oserror:")))
        missing = [f"{word!r} in {place}" for place, text in shown.items() for word in wanted if word not in text]
        said = f"not said: {', '.join(missing)}" if missing else told(one)
        return Outcome(**{**vars(found), "told": said[:160], "good": found.good and not missing})


def _words_of_save_error(one: Trial, code: int) -> list[str]:
    """What a run must say of a save of step 30 that failed: which, where, why, and the command that goes on."""
    failed = [line for line in one.lines("events.jsonl") if line["kind"] == "checkpoint_failed"]
    return [
        f"the checkpoint of step {failed[0]['step'] if failed else 30} could not be written: rank 1: ",
        os.strerror(code),
        "rank-00001.safetensors",
        f"on {socket.gethostname()}",
        f"shardyard resume {one.folder}",
    ]


def _operations(where: Where) -> Outcome:
    """The rank dies before each operation on files of a save, once in each of many saves; the run goes on each time."""
    places = [(rank, number) for rank, most in enumerate(MOST_OPERATIONS) for number in range(1, most + 1)]
    faults = [
        Fault(f"save:{number}", "signal:SIGKILL", rank=rank, step=EVERY * save, name=f"operation-{rank}-{number}")
        for save, (rank, number) in enumerate(places, 1)
    ]
    steps = EVERY * (len(faults) + 2)
    longer = {"train": {"steps": steps}, "evaluate": {"every": steps}, "cluster": {"max_failures": 1000}}
    reference = where.reference(**longer)
    with trial(where.cell, **longer) as one:
        one.faults, one.patience_seconds = faults, LONG_SECONDS
        one.variables = {"CHAOS_SPARES_AFTER": "0"}
        code = one.run("launch", one.recipe)
        count = len(list((one.box.folder / "marks").glob("operation-*")))
        found = outcome(one, finish(one, code), reference, Measured())
        return Outcome(**{**vars(found), "told": f"{count} kills, each before another operation"})


def cells() -> list[Cell]:
    """All of them."""
    newest_file = "the largest file of the newest checkpoint, then `resume`"
    damages = {"flipped": _flip, "truncated": _truncate, "deleted": Path.unlink, "swapped": _swap}
    return [
        *(
            Cell(f"checkpoint-{name}", "files", f"a file {name}", newest_file, partial(_damaged, damage))
            for name, damage in damages.items()
        ),
        Cell(
            "checkpoint-code",
            "files",
            "malicious pickle in a checkpoint",
            "of the first format, with a matching manifest",
            _malicious,
        ),
        *(
            Cell(
                f"save-error-{code}",
                "files",
                f"{name} in a save",
                f"`{call}` of rank 1's save of step 30 fails ({errno.errorcode[code]}, {times}×)",
                partial(_save_error, Fault(f"save:{call}", f"oserror:{code}", times=times)),
            )
            for name, (call, code, times) in SAVE_ERRORS.items()
        ),
        Cell(
            "disk-full",
            "files",
            "the disk is full",
            "a small file system, filled in step 25, emptied later",
            partial(_disk, _Full),
        ),
        Cell(
            "disk-read-only",
            "files",
            "the disk becomes read-only",
            "ext4 finds an error in step 25 (`trigger_fs_error`), checked and mounted again later",
            partial(_disk, _ReadOnly),
        ),
        Cell(
            "save-operations",
            "files",
            "a kill at every file operation of a save",
            "each rank, before each operation",
            _operations,
        ),
    ]
