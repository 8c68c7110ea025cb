"""Recording every collective of a rank in its beat; private names of torch, which a test detects when they are missing.

torch has no hook that sees every collective. All of them, also those of libraries that kept functions of torch before
this module was imported, go through methods of `ProcessGroup`, and block in `Work.wait`; both can be replaced.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch._C import _distributed_c10d as native
from torch.distributed import distributed_c10d

from shardyard.tracking.watch.beat import BEAT

# Methods of a process group that begin a collective or a transfer, and how people call it.
OPERATIONS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "allgather": "all_gather",
    "_allgather_base": "all_gather",
    "all_gather_single": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "gather": "gather",
    "scatter": "scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all",
    "all_to_all_single": "all_to_all",
    "send": "send",
    "recv": "recv",
    "recv_anysource": "recv",
    "barrier": "barrier",
}
# These wait themselves.
WAITING = {"monitored_barrier": "barrier"}
_MOST_PENDING = 512
_pending: dict[int, str] = {}
_installed: list[bool] = []
_compiling: list[list[str]] = []


def record_collectives() -> None:
    """Write every collective of this process into its beat, from now on."""
    if _installed:
        return
    _installed.append(True)
    group_class: Any = distributed.ProcessGroup
    for method, name in OPERATIONS.items():
        setattr(group_class, method, _recorded(getattr(group_class, method), name))
    for method, name in WAITING.items():
        setattr(group_class, method, _recorded(getattr(group_class, method), name, waits=True))
    work_class: Any = distributed.Work
    work_class.wait = _watched_wait(work_class.wait)


def _recorded(original: Callable[..., Any], name: str, *, waits: bool = False) -> Callable[..., Any]:
    def called(group: Any, *arguments: Any, **named: Any) -> Any:
        label = group.group_name
        elements, kind = _size(arguments)
        if BEAT.knows(label):
            BEAT.issue(label, name, kind, elements)
        else:
            BEAT.issue(label, name, kind, elements, _members(group))
        if waits:
            return _waiting(label, original, group, *arguments, **named)
        work = original(group, *arguments, **named)
        if len(_pending) >= _MOST_PENDING:
            _pending.clear()
        _pending[id(work)] = label
        return work

    return called


def _watched_wait(original: Callable[..., Any]) -> Callable[..., Any]:
    def wait(work: Any, *arguments: Any, **named: Any) -> Any:
        label = _pending.pop(id(work), "")
        return _waiting(label, original, work, *arguments, **named)

    return wait


def _waiting(label: str, original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    started = time.monotonic()
    BEAT.wait(label, started)
    try:
        return original(*arguments, **named)
    finally:
        BEAT.wait(label, 0.0)
        # A checkpoint is written on another thread, which waits without holding up the step.
        if threading.current_thread() is threading.main_thread():
            BEAT.waited(time.monotonic() - started)


def _size(arguments: tuple[Any, ...]) -> tuple[int, str]:
    """Number of elements and type of the first tensor."""
    found = arguments[0] if arguments else None
    while isinstance(found, list | tuple) and found:
        found = found[0]
    if isinstance(found, torch.Tensor):
        return found.numel(), str(found.dtype).removeprefix("torch.")
    return 0, ""


def _members(group: Any) -> list[int]:
    try:
        return distributed.get_process_group_ranks(group)
    except (KeyError, ValueError, RuntimeError):
        return []


def watch_compilation() -> None:
    """Make a compilation within a step a phase of its own, which may last longer than a step."""
    callbacks: Any = sys.modules.get("torch._dynamo.callback")
    if callbacks is None or _compiling:
        return
    outer: list[str] = []
    _compiling.append(outer)

    def started(_: object) -> None:
        outer.append(BEAT.phase)
        BEAT.enter("compile", time.monotonic())

    def ended(_: object) -> None:
        BEAT.enter(outer.pop() if outer else "step", time.monotonic())

    callbacks.on_compile_start(started)
    callbacks.on_compile_end(ended)


def flight_record() -> str:
    """What torch's flight recorder holds, as JSON; "" if it holds nothing."""
    text: Any = native._dump_fr_trace_json(True, False)  # type: ignore[attr-defined]
    return text if isinstance(text, str) else bytes(text).decode(errors="replace")


def limit_collectives(seconds: float) -> None:
    """Set the timeout of collectives, also for groups that DeepSpeed creates without a timeout, before or later."""
    limit = timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = limit
    distributed_c10d.default_pg_nccl_timeout = limit  # type: ignore[attr-defined]
    for group in [None, *distributed_c10d._world.pg_map]:
        distributed_c10d._set_pg_timeout(limit, group)
