"""Profiling some steps of a run: a trace of each rank, and their breakdown on rank 0."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from shardyard.engine.mesh import Mesh
from shardyard.engine.profiling import spans
from shardyard.engine.profiling.advice import advise, settings_of
from shardyard.engine.profiling.breakdown import breakdown
from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run import profile
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.profile import Profile, RankTimes

# The first steps allocate memory and choose kernels.
SKIPPED = 3
# How the names of threads that make rows begin (`data/stream/loader.py`).
READERS = "shardyard-data"


class StepProfiler:
    """Profiles the steps that the run folder asks for, once its first steps are done; does nothing without a request.

    All ranks make one and call `step` for each step.

    Args:
        left: number of steps that are still to be trained.
        report: called on rank 0 with a message once the profile is written.
    """

    def __init__(
        self, recipe: Recipe, plan: RunPlan, folder: RunFolder, mesh: Mesh, *, left: int, report: Callable[[str], None]
    ) -> None:
        self._recipe, self._plan, self._folder, self._mesh, self._report = recipe, plan, folder, mesh, report
        wanted = int(mesh.from_first(profile.requested(folder) if mesh.is_first else 0))
        self._skipped = min(SKIPPED, max(0, left - 1))
        self._wanted = min(wanted, left - self._skipped)
        self._seen = 0
        self._running = contextlib.ExitStack()
        self._profiler: torch.profiler.profile | None = None
        self._reading = 0.0

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Context of one step, from its batch to its hooks."""
        if self._wanted <= 0:
            yield
            return
        self._seen += 1
        if self._seen == self._skipped + 1:
            self._start()
        with spans.whole_step():
            yield
        if self._seen == self._skipped + self._wanted:
            self._finish(step)

    def close(self) -> None:
        """End an unfinished profile, of which nothing is kept."""
        self._running.close()

    def _start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._mesh.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._running.enter_context(spans.recording())
        self._running.enter_context(self._profiler)
        self._reading = _reading_seconds()

    def _finish(self, step: int) -> None:
        """Write this rank's trace, and on rank 0 the profile of all ranks. All ranks call this."""
        assert self._profiler is not None
        reading = (_reading_seconds() - self._reading) / self._wanted
        self._running.close()
        folder = profile.folder_of(self._folder)
        folder.mkdir(exist_ok=True)
        path = folder / f"rank-{self._mesh.rank}.trace.json"
        self._profiler.export_chrome_trace(str(path))
        self._profiler, wanted, self._wanted = None, self._wanted, 0
        times = breakdown(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])
        _compress(path)
        own = RankTimes(self._mesh.rank, times.step_seconds, times.parts, reading)
        ranks = tuple(self._mesh.world.gather(own))
        if self._mesh.is_first:
            advice = advise(ranks, settings_of(self._recipe, self._plan))
            profile.keep(self._folder, Profile(step - wanted + 1, step, ranks, advice))
            self._report(
                f"profiled steps {step - wanted + 1} to {step}: {folder / 'profile.json'}, and traces beside it"
            )


def _reading_seconds() -> float:
    """Time on a core so far of the threads of this process that make rows."""
    readers = {thread.native_id for thread in threading.enumerate() if thread.name.startswith(READERS)}
    return float(sum(one.user_time + one.system_time for one in psutil.Process().threads() if one.id in readers))


def _compress(path: Path) -> None:
    """Chrome and Perfetto open compressed traces, which are a tenth as large."""
    with path.open("rb") as whole, gzip.open(f"{path}.gz", "wb", compresslevel=3) as packed:
        shutil.copyfileobj(whole, packed)
    path.unlink()
