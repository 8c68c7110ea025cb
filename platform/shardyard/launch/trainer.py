"""One attempt at a job on Ray Train."""

from __future__ import annotations

import os
from pathlib import Path

from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from shardyard.engine.run import Job
from shardyard.launch.recovery import Failure, group_causes
from shardyard.launch.worker import RankError, train_worker


def attempt(job: Job) -> Failure | None:
    """Run all ranks of a job once; returns why it failed, or None.

    Ray's own restarts are off: what to do after a failure is decided by `recovery.decide`, which can tell a loss that
    is not a number from a node that went away.
    """
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if job.plan.world.gpu else "gloo"),
        scaling_config=_scaling(job),
        run_config=RunConfig(
            name=job.folder.id,
            storage_path=str(_ray_folder(job)),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        return _from_workers(error)
    except train.TrainingFailedError as error:
        return Failure({_last_line(str(error)): ()}, permanent=False)
    return None


def _scaling(job: Job) -> ScalingConfig:
    settings, gpu = job.recipe.cluster, job.plan.world.gpu
    resources = {"CPU": float(settings.cpus_per_worker)} | ({"GPU": 1.0} if gpu else {})
    return ScalingConfig(num_workers=settings.workers, use_gpu=gpu, resources_per_worker=resources)


def _ray_folder(job: Job) -> Path:
    """Ray Train keeps a few files of its own; they lie with the logs of the run."""
    folder = job.folder.path / "logs" / "ray"
    os.makedirs(folder, exist_ok=True)
    return folder


def _from_workers(error: train.WorkerGroupError) -> Failure:
    messages: dict[int, str] = {}
    permanent = False
    for rank, raised in error.worker_failures.items():
        cause = _cause(raised)
        if isinstance(cause, RankError):
            messages[rank] = cause.message
            permanent = permanent or cause.permanent
        else:
            messages[rank] = _last_line(str(raised))
    return Failure(group_causes(messages), permanent)


def _cause(error: BaseException) -> BaseException:
    """The exception that the worker raised, inside the layers that Ray wraps around it."""
    layer: BaseException | None = error
    seen: set[int] = set()
    # Exceptions that cause each other come round to one that was seen.
    while layer is not None and id(layer) not in seen:
        if isinstance(layer, RankError):
            return layer
        seen.add(id(layer))
        layer = getattr(layer, "cause", None) or getattr(layer, "_base_exc", None) or layer.__cause__
    return error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "the worker ended without a message"
