"""Faults inside the processes of a run: Python imports this file at its start when its folder is in PYTHONPATH.

CHAOS_FAULTS holds a JSON list of faults, each {rank, step, place, act, marker, times}; CHAOS_LOG is a folder, to
which every rank writes what it consumed. Nothing of the package knows of this: its functions are wrapped as they are
imported.

Places: `data`, `forward`, `backward`, `update` (the optimizer), `result` of a step, `batch` (its loss, before the
gradient), `weights` (after a step), and `save:N` or `load:N`, the N-th operation on a file below checkpoints/, or
`save:NAME`, the next one of this name: `open`, `pwritev`, `fsync`, `os.mkdir`, `os.rename`, ...
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time

FAULTS = json.loads(os.environ.get("CHAOS_FAULTS", "[]"))
LOG = os.environ.get("CHAOS_LOG", "")
NOW = {"step": 0, "saving": False, "operations": 0, "loads": 0, "busy": False}
# Operations on files that Python reports, see https://docs.python.org/3/library/audit_events.html.
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree")
# And those that it does not report, with a descriptor as the first argument.
DESCRIPTORS = ("write", "writev", "pwrite", "pwritev", "fsync")


def rank():
    """The rank of this process; None if it is none."""
    found = os.environ.get("RANK")
    return int(found) if found is not None else None


def due(place):
    """The fault of this place, rank and step that has not happened as often as it shall; it is counted."""
    for fault in FAULTS:
        if fault["place"] != place or fault.get("rank", 0) != rank() or NOW["step"] < fault.get("step", 0):
            continue
        if fault.get("exact") and NOW["step"] != fault["step"]:
            continue
        for count in range(fault.get("times", 1)):
            with contextlib.suppress(FileExistsError):
                marker = os.open(f"{fault['marker']}.{count}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                text = {"time": time.time(), "step": NOW["step"], "pid": os.getpid()}
                os.write(marker, json.dumps(text).encode())
                os.close(marker)
                return fault
    return None


def reach(place, **known):
    """Carry out the fault of this place, if there is one."""
    fault = due(place)
    if fault is None:
        return
    act, _, more = fault["act"].partition(":")
    if act == "signal":
        os.kill(os.getpid(), getattr(signal, more))
        time.sleep(0.5)  # it is delivered
    elif act == "segv":
        ctypes.string_at(0)
    elif act == "exit":
        os._exit(int(more or 0))
    elif act == "hold":
        # Until the test has done what it does from outside.
        while not os.path.exists(fault["marker"] + ".go"):
            time.sleep(0.01)
    elif act == "loop":
        while True:
            pass
    elif act == "oserror":
        raise OSError(int(more), os.strerror(int(more)))
    elif act == "raise":
        raise RuntimeError(more)
    elif act == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1 << 20)) * 64)
    elif act == "tensor":
        spoil(more, **known)
    else:
        raise ValueError(fault["act"])


def spoil(how, batch=None, model=None):
    """NaN or huge numbers in a step, or one flipped bit in a weight of this rank."""
    import torch

    weight = next(model.parameters())
    with torch.no_grad():
        if how == "flip":
            weight.view(torch.int32).view(-1)[0] ^= 1 << 20
        else:
            weight.view(-1)[0] = float(how)


def wrap(owner, name):
    """Replace a function of a module or class by what the decorated function makes of it."""

    def decorate(around):
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def outer(*arguments, **options):
            return around(inner, *arguments, **options)

        setattr(owner, name, outer)

    return decorate


def into_step(module):
    """Places within a step."""

    @wrap(module, "span")
    def _(inner, name):
        reach(name)
        return inner(name)


def into_backward(module):
    """A loss that is no number."""
    into_step(module)

    @wrap(module, "backward")
    def _(inner, engine, loss):
        return inner(engine, loss * float("nan") if due("batch") else loss)


def into_loop(module):
    """The number of the step, and places around it."""
    into_step(module)

    @wrap(module, "_begin")
    def _(inner, session, step, *more):
        NOW["step"] = step
        reach("weights", model=session.engine.module)
        return inner(session, step, *more)


def into_session(module):
    """What each rank consumes; and the time in which files are a checkpoint's."""

    @wrap(module.Session, "next_batch")
    def _(inner, session):
        batch = inner(session)
        if LOG:
            rows = [
                hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16]
                for part in batch.micro_batches
                for row in part["input_ids"]
            ]
            with open(os.path.join(LOG, f"rank-{rank() or 0}.jsonl"), "a") as file:
                file.write(json.dumps({"step": NOW["step"], "rows": rows, "time": time.time()}) + "\n")
        return batch


def into_checkpoint(module):
    """Faults at the operations on files of a save and of a load."""

    @wrap(module.Checkpointer, "restore")
    def _(inner, *arguments, **options):
        NOW["busy"] = "load"
        try:
            return inner(*arguments, **options)
        finally:
            NOW["busy"] = False

    @wrap(module.Checkpointer, "begin")
    def _(inner, *arguments, **options):
        NOW["busy"], NOW["operations"] = "save", 0
        return inner(*arguments, **options)


def look(event, arguments, name=""):
    """An operation on a file; an exception makes it fail. `name`: of one on a descriptor."""
    if not NOW["busy"] or event not in OPERATIONS or not isinstance(arguments[0], str | os.PathLike):
        return
    if "/checkpoints" not in os.fspath(arguments[0]) + "/":
        return
    NOW["operations"] += 1
    if LOG:
        with open(os.path.join(LOG, f"operations-{rank() or 0}.txt"), "a") as file:
            file.write(f"{NOW['busy']} {NOW['operations']} {NOW['step']} {event} {arguments[0]} {arguments[1:2]}\n")
    reach(f"{NOW['busy']}:{NOW['operations']}")
    reach(f"{NOW['busy']}:{name or event}")
    reach(NOW["busy"])


def look_at_descriptors():
    """Take writes and syncs for operations on files too."""
    for name in DESCRIPTORS:

        @wrap(os, name)
        def _(inner, descriptor, *more, name=name):
            if NOW["busy"]:
                look("open", (os.readlink(f"/proc/self/fd/{descriptor}"), name), name)
            return inner(descriptor, *more)


def into_spares(module):
    """Spare processes earlier or later than usual."""
    module.AFTER_SECONDS = float(os.environ.get("CHAOS_SPARES_AFTER", module.AFTER_SECONDS))


INTO = {
    "shardyard.launch.ray.spares": into_spares,
    "shardyard.engine.step": into_backward,
    "shardyard.engine.loop": into_loop,
    "shardyard.engine.session": into_session,
    "shardyard.engine.checkpoint.checkpoint": into_checkpoint,
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules above, and changes them once they are loaded."""

    def find_spec(self, name, path, target=None):
        """The usual spec, with a loader that changes the module afterwards."""
        if name not in INTO:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def loaded(module):
                load(module)
                INTO[name](module)

            spec.loader.exec_module = loaded
        return spec


if LOG or FAULTS:
    sys.meta_path.insert(0, Finder())
    if any(fault["place"].startswith(("save", "load")) for fault in FAULTS) or os.environ.get("CHAOS_OPERATIONS"):
        sys.addaudithook(look)
        look_at_descriptors()
