"""A box of its own for each cell: namespaces for network and mounts, so that all that is left over can be seen.

Within it processes, Ray's ports, shared memory and temporary files are those of the cell alone. Needs root, `unshare`
and `nsenter`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from support.hosts import clean_environment
from support.waiting import until

INJECT = Path(__file__).parent / "inject"
TESTS = Path(__file__).parents[1]
# What is mounted in the box: shared memory, and Ray's sessions, whose sockets need short paths.
_PREPARE = """
set -e
mkdir -p /tmp/ray
mount --make-rprivate /
mount -t tmpfs -o size=4g tmpfs /dev/shm
mount --bind "$1/ray" /tmp/ray
ip link set lo up
echo ready
exec sleep infinity
"""


def possible() -> bool:
    """Whether this machine lets us make boxes."""
    return os.geteuid() == 0 and all(map(shutil.which, ("unshare", "nsenter", "ip")))


@dataclass(frozen=True)
class Box:
    """A folder, and the process that keeps its namespaces."""

    folder: Path
    keeper: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command begins with to run in the box."""
        return ("nsenter", "-t", str(self.keeper), "-m", "-n", "--")

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a command in the box."""
        found = clean_environment(**more)
        paths = [str(INJECT), *filter(None, [found.get("PYTHONPATH")])]
        temporary = self.folder / "tmp"
        return {
            **found,
            "PYTHONPATH": os.pathsep.join(paths),
            "TMPDIR": str(temporary),
            "RAY_TMPDIR": "/tmp",
            "SHARDYARD_HOME": str(self.folder / "home"),
            "CHAOS_LOG": str(self.folder / "log"),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a short command in the box."""
        return subprocess.run([*self.prefix, *map(str, command)], capture_output=True, text=True, check=False)

    def processes(self) -> list[psutil.Process]:
        """Living processes in the network of the box. Ray's names of processes overwrite their environment."""
        here = os.stat(f"/proc/{self.keeper}/ns/net").st_ino
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                inside = os.stat(f"/proc/{process.pid}/ns/net").st_ino == here
                if inside and process.pid != self.keeper and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left_over(self) -> list[str]:
        """What is still there: processes, listening ports, shared memory, temporary files."""
        processes = [f"process {process.pid} {_name(process)}" for process in self.processes()]
        ports = [f"port {line.split()[3]}" for line in self.run("ss", "-Hltn").stdout.splitlines()]
        shared = [f"/dev/shm/{name}" for name in self.run("ls", "-A", "/dev/shm").stdout.split()]
        files = [f"TMPDIR/{path.name}" for path in (self.folder / "tmp").iterdir()]
        files += [f"/tmp/ray/{path.name}" for path in (self.folder / "ray").iterdir()]
        partial = [str(path.relative_to(self.folder)) for path in self.folder.glob("runs/*/checkpoints/.*")]
        partial += [str(path.relative_to(self.folder)) for path in self.folder.glob("runs/*/.*.tmp")]
        return [*processes, *ports, *shared, *files, *partial]

    def settled(self, seconds: float = 10.0) -> list[str]:
        """What is left over once processes had some seconds to end."""
        with contextlib.suppress(AssertionError):
            until(lambda: not self.processes(), "processes end", seconds=seconds)
        return self.left_over()

    def clear(self, but: Sequence[int] = ()) -> None:
        """Kill what still runs in the box."""
        for process in self.processes():
            if process.pid not in but:
                with contextlib.suppress(psutil.Error):
                    process.kill()


@contextmanager
def box(folder: Path, more: Mapping[str, str] | None = None) -> Iterator[Box]:
    """A box with this folder; what still runs in it at the end is killed."""
    for name in ("ray", "tmp", "log", "home", "marks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    keeper = subprocess.Popen(
        ["unshare", "--mount", "--net", "sh", "-c", _PREPARE, "sh", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(more or {})},
    )
    assert keeper.stdout is not None
    try:
        assert keeper.stdout.readline() == "ready\n", "the namespaces of a box cannot be made"
        made = Box(folder, keeper.pid)
        try:
            yield made
        finally:
            made.clear()
    finally:
        keeper.kill()
        keeper.communicate()


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())[:80]
    return "?"
