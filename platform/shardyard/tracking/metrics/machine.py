"""Utilisation of the machines of a run: CPU, memory, network and GPUs of each node, sampled in the background.

A thread of the first rank of each node samples the node. Threads of other nodes write their newest sample to
`logs/machines/<node>.json`, which the thread of rank 0 reads: no messages between ranks, so nothing can hang.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from shardyard.tracking.files import write_atomically

PERIOD_SECONDS = 15.0
# Short enough for curves of short runs.
FIRST_SECONDS = 2.0
# A sample older than this many periods is from a machine that no longer reports.
_OLD = 4


class MachineWatch:
    """Samples this node until it is closed.

    Args:
        folder: `logs/machines` of the run, on storage that all nodes share.
        node: host name.
        collects: whether this is rank 0, which reads the samples of all nodes.
        gpu: whether the ranks compute on GPUs.
    """

    def __init__(self, folder: Path, node: str, *, collects: bool, gpu: bool, period: float = PERIOD_SECONDS) -> None:
        self._folder, self._collects, self._period = folder, collects, period
        self._node = re.sub(r"[^A-Za-z0-9._-]", "-", node) or "node"
        self._gpu = gpu
        self._new: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)
        self._thread.start()

    def take(self) -> dict[str, float]:
        """New samples of all nodes since the last call: `system/<node>/cpu.percent` and so on; empty in between."""
        with self._lock:
            new, self._new = self._new, {}
        return new

    def close(self) -> None:
        """Stop sampling, and remove this node's file."""
        self._closed.set()
        self._thread.join(timeout=5.0)
        with contextlib.suppress(OSError):
            self._file.unlink()

    @property
    def _file(self) -> Path:
        return self._folder / f"{self._node}.json"

    def _run(self) -> None:
        sample, wait = Sampler(gpu=self._gpu), min(FIRST_SECONDS, self._period)
        while not self._closed.wait(wait):
            wait = self._period
            # Errors here must not stop the training.
            with contextlib.suppress(Exception):
                own = sample()
                if self._collects:
                    self._add(self._node, own)
                    self._collect()
                else:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    write_atomically(self._file, json.dumps({"time": time.time(), "sample": own}))

    def _add(self, node: str, sample: dict[str, float]) -> None:
        with self._lock:
            self._new |= {f"system/{node}/{name}": value for name, value in sample.items()}

    def _collect(self) -> None:
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                line = json.loads(path.read_text(encoding="utf-8"))
                fresh = time.time() - _OLD * self._period < line["time"] != self._seen.get(path.stem)
                if path.stem != self._node and fresh:
                    self._seen[path.stem] = line["time"]
                    self._add(path.stem, {str(name): float(value) for name, value in line["sample"].items()})


class Sampler:
    """Returns a sample of this machine at each call. Rates are means since the previous call."""

    def __init__(self, *, gpu: bool) -> None:
        self._gpu = gpu
        psutil.cpu_percent()  # The first call has no previous values.
        self._before = self._traffic()

    def __call__(self) -> dict[str, float]:
        """`cpu.percent`, `memory.percent`, `memory.usedBytes`, `network.sentBytesPerSecond`,
        `network.receivedBytesPerSecond`; for each visible GPU n `gpu.<n>.utilizationPercent`, `.memoryUsedBytes`,
        `.powerWatts`, `.temperatureCelsius` if the driver provides them."""
        memory, (at, sent, received) = psutil.virtual_memory(), self._before
        self._before = now, sent_now, received_now = self._traffic()
        seconds = max(now - at, 1e-3)
        sample = {
            "cpu.percent": psutil.cpu_percent(),
            "memory.percent": memory.percent,
            "memory.usedBytes": float(memory.total - memory.available),
            "network.sentBytesPerSecond": (sent_now - sent) / seconds,
            "network.receivedBytesPerSecond": (received_now - received) / seconds,
        }
        return sample | (self._gpus() if self._gpu else {})

    @staticmethod
    def _traffic() -> tuple[float, int, int]:
        counters = psutil.net_io_counters()
        return time.monotonic(), counters.bytes_sent if counters else 0, counters.bytes_recv if counters else 0

    @staticmethod
    def _gpus() -> dict[str, float]:
        read: dict[str, Callable[[int], float]] = {
            "utilizationPercent": torch.cuda.utilization,
            "memoryUsedBytes": torch.cuda.device_memory_used,
            "powerWatts": lambda gpu: torch.cuda.power_draw(gpu) / 1000,
            "temperatureCelsius": torch.cuda.temperature,
        }
        sample = {}
        for gpu in range(torch.cuda.device_count()):
            for name, function in read.items():
                with contextlib.suppress(Exception):  # A driver may lack one value and still provide the others.
                    sample[f"gpu.{gpu}.{name}"] = float(function(gpu))
        return sample
