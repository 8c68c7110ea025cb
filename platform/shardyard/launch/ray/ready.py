"""Preparation of a rank before it joins the others: environment and device check."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from shardyard.errors import ShardyardError
from shardyard.hardware import computes_on_cpu
from shardyard.imports import import_at_once
from shardyard.launch.ray.network import apply, derive, in_words, this_host
from shardyard.recipe.schema import Network

# Modules of a rank on a CPU.
HEAVY = "shardyard.launch.ray.worker"


@dataclass(frozen=True)
class Ready:
    """The report of a rank before it joins the others: its settings as text, or why it cannot join."""

    settings: tuple[str, ...] = ()
    problem: str = ""


def make_ready(
    network: Network,
    address: str,
    *,
    gpu: bool,
    one_host: bool,
    forwarded: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
) -> Ready:
    """Runs in the process of a rank: derive and apply its settings, and check its device.

    Args:
        forwarded: variables of the launching shell.
        environment: variables set by the host, which take precedence; by default those of this process.
    """
    given = dict(os.environ) if environment is None else environment
    try:
        host = this_host(address)
        settings = derive(network, host, gpu=gpu, one_host=one_host, environment=given, forwarded=forwarded)
    except ShardyardError as error:
        return Ready(problem=str(error))
    apply(settings)
    import_ahead(gpu=gpu)
    if gpu and (problem := _no_gpu(address)):
        return Ready(problem=problem)
    return Ready(tuple(in_words(settings, host)))


def import_ahead(*, gpu: bool) -> None:
    """Runs in the process of a rank: import large modules."""
    if gpu:
        # DeepSpeed may query the current device, so it is imported only once the rank's device is set.
        import_at_once("torch")
        return
    # DeepSpeed would use any visible GPU, even one that Ray assigned to another process.
    os.environ["DS_ACCELERATOR"] = "cpu"
    import_at_once(HEAVY)


def outlive_sigterm() -> None:
    """In a cluster started for this run only the driver handles SIGTERM, which is blocked here until now. Replace that
    with an empty handler, which has the same effect but lets the children of this process be stopped."""
    if signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        # A started program does not inherit these handlers, a fork does.
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _no_gpu(address: str) -> str:
    if computes_on_cpu():
        return (
            f"ranks on {address} shall compute on GPUs, but DS_ACCELERATOR is cpu there; unset it and restart Ray on "
            "that host, or set cluster.gpus_per_worker to 0."
        )
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        f"Ray offers GPUs on {address}, but torch {torch.__version__} cannot use any there; check nvidia-smi and the "
        "build of torch on that host, or set cluster.gpus_per_worker to 0."
    )
