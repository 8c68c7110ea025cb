"""The description of a rank whose process died without an error: the signal, the host, and its last output."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from shardyard.tracking.run.info import Place

LAST_LINES = 5
_TAIL_BYTES = 64 * 1024
_LONGEST_LINE = 300
# Messages about a fatal signal, from Ray's C++ handler and Python's faulthandler.
_REPORTED = re.compile(
    r"\*\*\* (SIG[A-Z0-9]+) received|Fatal Python error: ([A-Z][A-Za-z ]+?)(?: error)?$", re.MULTILINE
)
_IN_PYTHON = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
}
# Lines of stack traces, which do not explain why a run failed.
_NOISE = re.compile(
    r"^\s*(@ |PC: @|\[.*\] .*(logging\.cc|\.cc:\d+)|File \"|Current thread|Thread 0x|Extension modules:)"
)


def describe_death(
    log: Path, rank: int, places: Sequence[Place], ray_message: str, *, oom_kills: int | None = None
) -> str:
    """One paragraph: the signal if known, the host and pid, and the last lines of the rank's log.

    Args:
        log: of the rank; attempts share it.
        places: hosts with their ranks and pids, as in run.json.
        ray_message: the message of Ray's exception.
        oom_kills: the number of OOM kills by the kernel of this host since the attempt began.
    """
    host, pid = _where(rank, places)
    output = _last_output(log, pid)
    lines = [line.rstrip()[:_LONGEST_LINE] for line in output.splitlines() if line.strip() and not _NOISE.match(line)]
    text = f"{_what(output, ray_message, host, oom_kills)} (pid {pid} on {host})"
    if not lines:
        return f"{text}; {log.name} is empty"
    return "\n".join([f"{text}; last lines of {log.name}:", *(f"    {line}" for line in lines[-LAST_LINES:])])


def count_oom_kills() -> int | None:
    """The number of OOM kills by the kernel of this host since boot; None if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _what(output: str, ray_message: str, host: str, oom_kills: int | None) -> str:
    if found := list(_REPORTED.finditer(output)):
        signal, reason = found[-1].groups()
        return f"its process was ended by {signal or _IN_PYTHON.get(reason, reason)}"
    lowered = ray_message.lower()
    if "node" in lowered and ("died" in lowered or "terminated" in lowered) and "worker" not in lowered:
        return "its node went away"
    if "out of memory" in lowered or "low on memory" in lowered or "outofmemory" in lowered:
        return "its process was ended by SIGKILL: Ray's memory monitor found its host short of memory"
    if oom_kills and host == socket.gethostname():
        return f"its process was ended by SIGKILL: the kernel ran out of memory and killed {oom_kills} process(es)"
    hint = "`kill -9` does so, and so does the kernel when memory runs out (see `dmesg -T` there)"
    return f"its process was ended by SIGKILL, or it exited without a message: {hint}"


def _where(rank: int, places: Sequence[Place]) -> tuple[str, object]:
    for place in places:
        if rank in place["ranks"]:
            return str(place["host"]), place["pids"][place["ranks"].index(rank)]
    return "an unknown host", "unknown"


def _last_output(log: Path, pid: object) -> str:
    """The last output of this process in the log of a rank."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    begins = text.rfind(f"pid {pid},")
    return text[text.rfind("\n", 0, begins) + 1 :] if begins >= 0 else text
