"""The Ray cluster that a job runs in, as the processes above it know it.

Ray's supervisor of jobs sets RAY_ADDRESS to the cluster that was started last on the machine, which is another one if
somebody starts a second Ray there (`JobSupervisor._get_driver_env_vars`, Ray 2.60). Imports the standard library alone.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
_OPTION = b"--gcs-address="
# Shell, supervisor, raylet, and what a container or a wrapper adds.
_GENERATIONS = 16


def own_address(pid: int | None = None, proc: Path = _PROC) -> str | None:
    """`host:port` of the cluster whose raylet is an ancestor of a process (this one); None without one."""
    pid = os.getpid() if pid is None else pid
    for _ in range(_GENERATIONS):
        try:
            # The name, in brackets, may contain spaces and brackets.
            pid = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
            command = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            return None
        for argument in command:
            if argument.startswith(_OPTION):
                return argument.removeprefix(_OPTION).decode(errors="replace") or None
    return None
