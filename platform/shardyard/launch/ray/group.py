"""What is done around the workers of an attempt: their environment before they meet, their places in run.json after.

Ray Train's controller calls these hooks, in the process of the driver. What each worker does in turn is sent to it;
nothing here imports torch for the driver.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from shardyard.errors import HardwareError, ShardyardError
from shardyard.hardware import computes_on_cpu
from shardyard.imports import import_at_once
from shardyard.launch.ray.network import apply, derive, in_words, this_host
from shardyard.recipe.schema import Network
from shardyard.tracking.run.events import Notice, Placed, write_event
from shardyard.tracking.run.folder import RunFolder, now_text
from shardyard.tracking.run.info import Place


@dataclass(frozen=True)
class Ready:
    """What a rank says before it meets the others: its settings in words, or why it cannot take part."""

    settings: tuple[str, ...] = ()
    problem: str = ""


class Group(WorkerGroupCallback):  # type: ignore[misc]
    """Prepares the ranks of one attempt.

    gpu: whether they compute on GPUs.
    group: consecutive ranks that should share a node.
    forwarded: variables of the launching shell for ranks on all hosts.
    private: variables for ranks whose values are written nowhere.
    """

    def __init__(
        self,
        folder: RunFolder,
        network: Network,
        *,
        gpu: bool,
        group: int,
        forwarded: Mapping[str, str],
        private: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._network = network
        self._gpu = gpu
        self._group = group
        self._forwarded = dict(forwarded)
        self._private = dict(private or {})

    def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
        """Called when all workers have their resources and ranks, and torch.distributed does not know them yet.

        Raises:
            HardwareError: a host lacks what the recipe asks for.
        """
        places = places_of(workers)
        self._folder.update(placement=places, placed=now_text(), waiting=None)
        one_host = len({place["address"] for place in places}) == 1
        answers: list[Ready] = ray.get(
            [
                worker.execute_async(
                    make_ready,
                    self._network,
                    worker.metadata.node_ip,
                    gpu=self._gpu,
                    one_host=one_host,
                    forwarded=self._forwarded,
                    private=self._private,
                )
                for worker in workers
            ]
        )
        if problems := dict.fromkeys(answer.problem for answer in answers if answer.problem):
            raise HardwareError("\n".join(problems))
        by_host = {
            worker.metadata.node_ip: list(answer.settings) for worker, answer in zip(workers, answers, strict=True)
        }
        self._folder.update(network=by_host)
        if len(places) > 1:
            write_event(self._folder.events, Placed(placement=places, network=by_host))
        if parted := parted_groups(places, self._group):
            text = f"{parted} group(s) of {self._group} ranks that share experts lie on several nodes, which is slow"
            write_event(self._folder.events, Notice(text=text))
        return {}


def make_ready(
    network: Network,
    address: str,
    *,
    gpu: bool,
    one_host: bool,
    forwarded: Mapping[str, str],
    private: Mapping[str, str] | None = None,
) -> Ready:
    """Runs in the process of a rank, before torch and DeepSpeed are imported there; it begins with that."""
    os.environ.update(private or {})
    outlive_sigterm()
    try:
        host = this_host(address)
        settings = derive(network, host, gpu=gpu, one_host=one_host, environment=dict(os.environ), forwarded=forwarded)
    except ShardyardError as error:
        return Ready(problem=str(error))
    apply(settings)
    if not gpu:
        # DeepSpeed would take any GPU that it sees, also one that Ray gave to somebody else.
        os.environ["DS_ACCELERATOR"] = "cpu"
        import_at_once("shardyard.launch.ray.worker")
    elif problem := _no_gpu(address):
        return Ready(problem=problem)
    return Ready(tuple(in_words(settings, host)))


def outlive_sigterm() -> None:
    """In a cluster that was started for this run, where the driver alone answers to SIGTERM, it is blocked so far. A
    handler that does nothing is as good for this process, and those that it starts can be ended again."""
    if signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        # A program that is started has no handlers of ours, a fork has.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def places_of(workers: Sequence[Any]) -> list[Place]:
    """Nodes in the order of ranks: id, address, host name, ranks, and of each rank its process and GPUs."""
    places: dict[str, Place] = {}
    for rank, worker in enumerate(workers):
        found = worker.metadata
        place = places.setdefault(
            found.node_id,
            {
                "node": found.node_id,
                "address": found.node_ip,
                "host": found.hostname,
                "ranks": [],
                "pids": [],
                "gpus": [],
            },
        )
        place["ranks"].append(rank)
        place["pids"].append(found.pid)
        place["gpus"].append([str(gpu) for gpu in found.gpu_ids])
    return list(places.values())


def parted_groups(places: Sequence[Mapping[str, Any]], group: int) -> int:
    """How many groups of consecutive ranks lie on more than one node."""
    node = {rank: place["node"] for place in places for rank in place["ranks"]}
    starts = range(0, len(node), group)
    return sum(1 for start in starts if len({node[rank] for rank in range(start, start + group)}) > 1)


def _no_gpu(address: str) -> str:
    if computes_on_cpu():
        return (
            f"ranks on {address} shall compute on GPUs, but DS_ACCELERATOR is cpu there; unset it and start Ray anew "
            "on that host, or set cluster.gpus_per_worker to 0."
        )
    # DeepSpeed, which may look at the current device, waits until the rank knows which one is its own.
    import_at_once("torch")
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        f"Ray offers GPUs on {address}, but torch {torch.__version__} cannot use any there; check nvidia-smi and the "
        "build of torch on that host, or set cluster.gpus_per_worker to 0."
    )
