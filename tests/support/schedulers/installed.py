"""An installed package with schedulers: two that have jobs in a file, and one that never answers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from shardyard.launch.schedulers.base import Capacity, JobHandle, JobStatus
from shardyard.planning.placement import Amount, Node
from support.schedulers.fake import FakeScheduler

# The file of `jobs`, by scheduler.
FILE_VARIABLE = "FAKE_SCHEDULERS_FILE"
_ENTRY_POINTS = """[shardyard.schedulers]
campus = support.schedulers.installed:Campus
cloud = support.schedulers.installed:Cloud
stuck = support.schedulers.installed:Stuck
"""


class FromFile(FakeScheduler):
    """Jobs that a test writes to a file, in which it also sees which were stopped."""

    def list(self, *, ended: bool = False) -> Sequence[JobStatus]:
        self._read()
        return super().list(ended=ended)

    def logs(self, job: JobHandle, *, follow: bool = False, lines: int | None = None) -> Iterator[str]:
        self._read()
        return super().logs(job, follow=follow, lines=lines)

    def stop(self, job: JobHandle) -> None:
        path = Path(os.environ[FILE_VARIABLE])
        content = json.loads(path.read_text())
        content[self.name][job.id]["state"] = "STOPPED"
        path.write_text(json.dumps(content))

    def _read(self) -> None:
        for name, told in json.loads(Path(os.environ[FILE_VARIABLE]).read_text())[self.name].items():
            job = self.add(told["run"], job_id=name, name=told["name"])
            self.written[name] = told.get("log", "")
            if told["state"] == "RUNNING":
                self.start(job)
            elif told["state"] != "PENDING":
                self.end(job, told.get("code", 130), told["state"])


class Campus(FromFile):
    """Reports its nodes."""

    name = "campus"

    def capacity(self) -> Capacity:
        return Capacity(tuple(Node(f"c{number:02}", Amount(16.0, 4.0), Amount(4.0, 0.0)) for number in range(30)))


class Cloud(FromFile):
    """Does not report its nodes."""

    name = "cloud"

    def capacity(self) -> Capacity:
        return Capacity(None, grows=True)


class Stuck(FakeScheduler):
    """Its server accepts every query and never answers."""

    name = "stuck"

    def __init__(self, address: str | None = None) -> None:
        super().__init__(address)
        self.hang = threading.Event()


def install(folder: Path) -> None:
    """Make a package of these in a folder that is to be on the path, together with the folder of `support`."""
    place = folder / "fake_schedulers-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-schedulers\nVersion: 1.0\n")
    (place / "entry_points.txt").write_text(_ENTRY_POINTS)
