"""The actor of a rank: it reports its place, prepares its process, joins the other ranks and trains.

Its methods run sequentially on the main thread of its process, which handles signals and on which CUDA's current device
is set. torch is imported only in ranks, because the driver imports this module too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import ray
from ray.util import get_node_ip_address

from shardyard.imports import import_at_once
from shardyard.launch.ray.places import Member, Seat
from shardyard.launch.ray.process_group import join_process_group, leave_process_group, open_port
from shardyard.launch.ray.ready import HEAVY, Ready, import_ahead, make_ready, outlive_sigterm
from shardyard.launch.run.output import redirect_output
from shardyard.recipe.schema import Network
from shardyard.tracking.wandb.quirks import leave_wandb
from shardyard.tracking.watch.beat import BEAT

if TYPE_CHECKING:
    from shardyard.engine.loop import Outcome

# A spare process imports only if its host has this much memory: five times what the imports of one take.
SPARE_ROOM_BYTES = 2 << 30
LOW_PRIORITY = 10
# Time for a killed process to give back its memory.
END_SECONDS = 10.0


@dataclass(frozen=True)
class Setup:
    """The settings of all ranks of a group.

    gpu: whether they compute on GPUs.
    forwarded: variables of the launching shell for ranks on all hosts.
    private: variables whose values are never logged.
    logs: the folder for a log of each rank; if None, Ray keeps their output.
    """

    network: Network
    gpu: bool
    forwarded: Mapping[str, str]
    private: Mapping[str, str]
    logs: Path | None = None


class RankWorker:
    """One rank. Calls run sequentially."""

    def locate(self, setup: Setup, world_size: int) -> Member:
        """The location and resources of this process."""
        outlive_sigterm()
        os.environ.update(setup.private)
        self._setup = setup
        self._environment = dict(os.environ)
        BEAT.clear()
        context = ray.get_runtime_context()
        self._address = get_node_ip_address()
        self._listening, port = open_port(self._address, world_size)
        gpus = context.get_accelerator_ids().get("GPU", [])
        return Member(
            context.get_node_id(),
            self._address,
            socket.gethostname(),
            os.getpid(),
            tuple(map(str, gpus)),
            port,
            os.environ.get("OMP_NUM_THREADS", ""),
            BEAT.open(),
        )

    def load(self) -> None:
        """Import the modules for the next calls. Errors are ignored here: they recur there and are reported then."""
        # torch reads some variables when it is imported.
        for name, value in self._setup.forwarded.items():
            os.environ.setdefault(name, value)
        with contextlib.suppress(Exception):
            import_ahead(gpu=self._setup.gpu)

    def load_slowly(self, threads: str) -> None:
        """Import as `load` does, beside a training that shall not notice it, and where there is memory for it.

        Args:
            threads: OMP_NUM_THREADS of the rank whose place this process may take.
        """
        for variables in (os.environ, self._environment):
            if threads:
                variables["OMP_NUM_THREADS"] = threads
            else:
                variables.pop("OMP_NUM_THREADS", None)
        if psutil.virtual_memory().available > SPARE_ROOM_BYTES:
            threading.Thread(target=self._load_at_low_priority, name="shardyard-load", daemon=True).start()

    def _load_at_low_priority(self) -> None:
        # Linux has a priority for each thread, and an unprivileged process could not raise that of the whole again.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
        self.load()

    def outlive(self, pid: int) -> bool:
        """Wait until the process of a rank on this host has ended, and its memory is free; returns whether it has."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if "RankWorker" in " ".join(process.cmdline()):
                process.kill()
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(END_SECONDS)
                return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        return True

    def prepare(self, seat: Seat, one_host: bool) -> Ready:
        """Take a place among the ranks; `one_host`: all of them run on this host."""
        setup = self._setup
        self._seat = seat
        if setup.logs is not None:
            redirect_output(setup.logs / f"rank-{seat.rank}.log")
        if setup.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seat.visible_gpus)
        _note(seat, f"begins on {socket.gethostname()}, pid {os.getpid()}, {seat.device}")
        return make_ready(
            setup.network,
            self._address,
            gpu=setup.gpu,
            one_host=one_host,
            forwarded=setup.forwarded,
            environment=self._environment,
        )

    def join(self, address: str, port: int, timeout: float) -> None:
        """Join the others at the address and port of rank 0, within `timeout` seconds."""
        listening, self._listening = self._listening, None
        if listening is not None and self._seat.rank > 0:
            listening.close()
            listening = None
        backend = "nccl" if self._setup.gpu else "gloo"
        try:
            join_process_group(self._seat, address, port, backend=backend, timeout=timeout, listening=listening)
        except Exception as error:  # noqa: BLE001  a rank reports whatever ended it
            traceback.print_exc()
            from shardyard.launch.ray.worker import rank_error

            raise rank_error(error, stepped=False) from None

    def train(self, job: bytes) -> Outcome:
        """Run a pickled job; returns its outcome.

        Raises:
            RankError: this rank failed.
        """
        import_at_once(HEAVY)
        from shardyard.launch.ray.worker import train_job

        outcome = train_job(job, self._seat)
        _note(self._seat, outcome)
        BEAT.enter("end", time.monotonic())
        return outcome

    def leave(self) -> None:
        """Leave the process group and what else outlives a process, before this one ends by a signal."""
        leave_process_group()
        leave_wandb()


def _note(seat: Seat, what: str) -> None:
    """Write a line to the log of the rank, which all attempts share."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    sys.stdout.write(f"{now} rank {seat.rank} of {seat.world_size}: {what}\n")
